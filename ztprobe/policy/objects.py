"""Documents of Kubernetes objects as `ztprobe.policy.model.Objects`.

Pods, and the pod templates of workloads (each as one pod of the workload's name, whose address
nobody knows yet), namespaces, nodes, services and policies; lists of them. Kinds without a meaning
for policies are counted and otherwise left alone, so that ``kubectl get all`` can be given as it is; a
policy that is not understood is refused, because a verdict without it would be another one. Pure.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ztprobe.errors import UsageError
from ztprobe.policy.clusterpolicies import parse_admin_policy, parse_baseline_policy, parse_cluster_policy
from ztprobe.policy.fields import Where, in_words
from ztprobe.policy.labels import NAMESPACE_NAME
from ztprobe.policy.manifests import Document
from ztprobe.policy.model import ClusterPod, IPAddress, Namespace, Node, Objects, Policy, Service
from ztprobe.policy.networkpolicies import parse_network_policy

__all__ = ("MESH_PROXIES", "read_objects")

MESH_PROXIES = ("istio-proxy", "linkerd-proxy")
_TEMPLATES = {  # kind -> where its pod template is
    ("apps/v1", "Deployment"): ("spec", "template"),
    ("apps/v1", "StatefulSet"): ("spec", "template"),
    ("apps/v1", "DaemonSet"): ("spec", "template"),
    ("apps/v1", "ReplicaSet"): ("spec", "template"),
    ("batch/v1", "Job"): ("spec", "template"),
    ("batch/v1", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
    ("v1", "ReplicationController"): ("spec", "template"),
}
_CLUSTER_POLICIES = {
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): parse_cluster_policy,
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"): parse_admin_policy,
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"): parse_baseline_policy,
}
_UNDERSTOOD = "networking.k8s.io/v1 NetworkPolicy, policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy" + (
    " or v1alpha1 AdminNetworkPolicy or BaselineAdminNetworkPolicy"
)
_MOST_LISTS = 3  # a List within a List within a List

_Item = TypeVar("_Item")


def read_objects(documents: Iterable[Document], namespace: str = "default") -> Objects:
    """The objects in documents, each once.

    :param namespace: of those that name none.

    :raises UsageError: one is no Kubernetes object, a policy that is not understood, wrong in a field
        that counts, or there twice under one name; names file, line, object and field.
    """
    reader = _Reader(namespace)
    for document in documents:
        reader.take(document)
    return Objects(
        pods=tuple(reader.pods.values()),
        namespaces=tuple(reader.namespaces.values()),
        nodes=tuple(reader.nodes.values()),
        services=tuple(reader.services.values()),
        policies=tuple(reader.policies.values()),
        ignored=dict(sorted(reader.ignored.items())),
        unplaced=tuple(reader.unplaced),
    )


class _Reader:
    def __init__(self, namespace: str) -> None:
        self._default = namespace
        self.unplaced: list[str] = []
        self.pods: dict[str, ClusterPod] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.nodes: dict[str, Node] = {}
        self.services: dict[str, Service] = {}
        self.policies: dict[str, Policy] = {}  # by kind and name
        self.ignored: Counter[str] = Counter()
        self._documents: dict[tuple[str, str], Document] = {}

    def take(self, document: Document, depth: int = 0) -> None:
        data = document.data
        if not isinstance(data, dict):
            what = (
                "text" if isinstance(data, str) else in_words(data) if isinstance(data, list) else "a value"
            )
            raise UsageError(f"{document.place(())}: expected a Kubernetes object, found {what}")
        version, kind = data.get("apiVersion"), data.get("kind")
        if not isinstance(version, str) or not isinstance(kind, str):
            raise UsageError(
                f"{document.place(())}: expected a Kubernetes object, found no apiVersion and kind"
            )
        if kind.endswith("List") and isinstance(data.get("items"), list):
            if depth == _MOST_LISTS:
                raise UsageError(f"{document.place(())}: expected objects, found lists within lists")
            for item in document.items():
                if isinstance(item.data, dict) and kind != "List":  # whose items need not say what they are
                    item.data.setdefault("apiVersion", version)
                    item.data.setdefault("kind", kind.removesuffix("List"))
                self.take(item, depth + 1)
            return
        where = Where(kind, (), document.place)
        metadata = (where / "metadata").mapping(data.get("metadata"))
        parse = self._parser(version, kind, where, metadata)
        if parse is None:
            self.ignored[kind] += 1
            return
        name = metadata.get("name")
        if not isinstance(name, str) or not name:
            raise (where / "metadata" / "name").error(f"is {in_words(name)}, expected the object's name")
        parse(data, name, metadata, document)

    def _parser(
        self, version: str, kind: str, where: Where, metadata: Mapping[str, Any]
    ) -> Callable[[dict[str, Any], str, Mapping[str, Any], Document], None] | None:
        if (version, kind) == ("v1", "Pod"):
            return self._pod
        if (version, kind) in _TEMPLATES:
            return self._template
        if (version, kind) == ("v1", "Namespace"):
            return self._namespace
        if (version, kind) == ("v1", "Node"):
            return self._node
        if (version, kind) == ("v1", "Service"):
            return self._service
        if (version, kind) == ("networking.k8s.io/v1", "NetworkPolicy") or (
            version,
            kind,
        ) in _CLUSTER_POLICIES:
            return self._policy
        group = version.partition("/")[0]
        of_the_group = group == "policy.networking.k8s.io"
        if of_the_group or kind.endswith(("NetworkPolicy", "NetworkPolicies", "EgressFirewall")):
            name = metadata.get("name")
            named = Where(f"{kind} {name}" if isinstance(name, str) else kind, (), where.line_of)
            raise named.error(f"is {version[:60]} {kind[:60]}, expected {_UNDERSTOOD}")
        return None

    def _keep(self, known: dict[str, _Item], key: str, kind: str, item: _Item, document: Document) -> None:
        if (kind, key) in self._documents:
            first = self._documents[kind, key].place(())
            raise UsageError(f"{document.place(())}: {kind} {key} is there already ({first})")
        known[f"{kind} {key}"] = item
        self._documents[kind, key] = document  # and not its place: lines of JSON are costly to find

    def _namespace_of(self, metadata: Mapping[str, Any], name: str) -> str:
        namespace = metadata.get("namespace")
        if isinstance(namespace, str) and namespace:
            return namespace
        self.unplaced.append(name)
        return self._default

    def _pod(self, data: dict[str, Any], name: str, metadata: Mapping[str, Any], document: Document) -> None:
        namespace = self._namespace_of(metadata, name)
        where = Where(f"Pod {namespace}/{name}", (), document.place)
        pod = _pod(data, name, namespace, metadata, where, None)
        self._keep(self.pods, pod.id, "Pod", pod, document)

    def _template(
        self, data: dict[str, Any], name: str, metadata: Mapping[str, Any], document: Document
    ) -> None:
        kind, namespace = data["kind"], self._namespace_of(metadata, name)
        where, template = Where(f"{kind} {namespace}/{name}", (), document.place), data
        for key in _TEMPLATES[data["apiVersion"], kind]:
            where = where / key
            template = where.mapping(template.get(key))
        labels = (where / "metadata").mapping(template.get("metadata"))
        pod = _pod({"spec": template.get("spec")}, name, namespace, labels, where, kind)
        self._keep(self.pods, pod.id, "Pod", pod, document)

    def _namespace(
        self, data: dict[str, Any], name: str, metadata: Mapping[str, Any], document: Document
    ) -> None:
        labels = Where(f"Namespace {name}", ("metadata", "labels"), document.place).labels(
            metadata.get("labels")
        )
        namespace = Namespace(name=name, labels={**labels, NAMESPACE_NAME: name})
        self._keep(self.namespaces, name, "Namespace", namespace, document)

    def _node(self, data: dict[str, Any], name: str, metadata: Mapping[str, Any], document: Document) -> None:
        where = Where(f"Node {name}", (), document.place)
        labels = (where / "metadata" / "labels").labels(metadata.get("labels"))
        here = where / "status" / "addresses"
        status = (where / "status").mapping(data.get("status"))
        addresses = []
        for number, item in enumerate(here.sequence(status.get("addresses"))):
            entry = here[number].mapping(item)
            if entry.get("type") in ("InternalIP", "ExternalIP"):
                addresses.append(_address(entry.get("address"), here[number] / "address"))
        node = Node(name=name, labels=labels, addresses=tuple(addresses))
        self._keep(self.nodes, name, "Node", node, document)

    def _service(
        self, data: dict[str, Any], name: str, metadata: Mapping[str, Any], document: Document
    ) -> None:
        namespace = self._namespace_of(metadata, name)
        where = Where(f"Service {namespace}/{name}", (), document.place)
        spec = (where / "spec").mapping(data.get("spec"))
        here = where / "spec" / "clusterIPs"
        texts = here.sequence(spec.get("clusterIPs")) or [spec.get("clusterIP")]
        found = [_address(text, here) for text in texts if text not in (None, "", "None")]
        service = Service(name=name, namespace=namespace, addresses=tuple(found))
        self._keep(self.services, f"{namespace}/{name}", "Service", service, document)

    def _policy(
        self, data: dict[str, Any], name: str, metadata: Mapping[str, Any], document: Document
    ) -> None:
        parse = _CLUSTER_POLICIES.get((data["apiVersion"], data["kind"]))
        if parse is None:
            namespace = self._namespace_of(metadata, name)
            where = Where(f"NetworkPolicy {namespace}/{name}", (), document.place)
            policy = parse_network_policy(data, name, namespace, where)
        else:
            policy = parse(data, name, Where(f"{data['kind']} {name}", (), document.place))
        self._keep(self.policies, policy.id.removeprefix(f"{policy.kind} "), policy.kind, policy, document)


def _address(value: Any, where: Where) -> IPAddress:
    try:
        return ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError as error:
        raise where.error(f"is {in_words(value)}, expected an IP address") from error


def _pod(
    data: Mapping[str, Any],
    name: str,
    namespace: str,
    metadata: Mapping[str, Any],
    where: Where,
    template_of: str | None,
) -> ClusterPod:
    labels = (where / "metadata" / "labels").labels(metadata.get("labels"))
    spec = (where / "spec").mapping(data.get("spec"))
    status = (where / "status").mapping(data.get("status"))
    named: set[tuple[str, str, int]] = set()
    all_ports: set[tuple[str, int]] = set()
    sidecars = []
    for key in ("containers", "initContainers"):
        here = where / "spec" / key
        for number, item in enumerate(here.sequence(spec.get(key))):
            container = here[number].mapping(item)
            if key == "initContainers" and container.get("restartPolicy") != "Always":
                continue  # gone before anything connects
            ports = _container_ports(container, here[number])
            named |= {(protocol, port_name, port) for protocol, port, port_name in ports if port_name}
            all_ports |= {(protocol, port) for protocol, port, _ in ports}
            if key == "initContainers" or container.get("name") in MESH_PROXIES:
                own = frozenset((protocol, port) for protocol, port, _ in ports)
                sidecars.append((str(container.get("name", "")), own))
    return ClusterPod(
        name=name,
        namespace=namespace,
        labels=labels,
        addresses=_addresses(status, "podIPs", "podIP", where / "status"),
        named_ports=frozenset(named),
        container_ports=frozenset(all_ports),
        host_network=spec.get("hostNetwork") is True,
        ended=status.get("phase") in ("Succeeded", "Failed"),
        node=spec.get("nodeName") if isinstance(spec.get("nodeName"), str) else None,
        node_addresses=_addresses(status, "hostIPs", "hostIP", where / "status"),
        template_of=template_of,
        sidecars=tuple(sidecars),
    )


def _container_ports(container: Mapping[str, Any], where: Where) -> list[tuple[str, int, str]]:
    found = []
    here = where / "ports"
    for number, item in enumerate(here.sequence(container.get("ports"))):
        entry = here[number].mapping(item)
        protocol = entry.get("protocol")
        protocol = "TCP" if protocol is None else (here[number] / "protocol").text(protocol)
        port = (here[number] / "containerPort").number(entry.get("containerPort"), 1, 65535)
        name = entry.get("name")
        found.append((protocol, port, "" if name is None else (here[number] / "name").text(name)))
    return found


def _addresses(status: Mapping[str, Any], many: str, one: str, where: Where) -> tuple[IPAddress, ...]:
    here = where / many
    items = here.sequence(status.get(many))
    texts = [here[n].mapping(item).get("ip") for n, item in enumerate(items)] or [status.get(one)]
    found = [_address(text, here if items else where / one) for text in texts if text]
    return tuple(dict.fromkeys(found))
