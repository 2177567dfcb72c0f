"""What the manifests ask to run, as plain values: pods, containers, services, policies.

Pure: documents and options in, plan out. Documents are read as the API server decodes them, with
its defaults: what is empty, null and absent is the same wherever it is the same there, and types are
checked (`ztprobe.runtime.local.manifest_shapes`). The local runtime has no scheduler, no image registry
and no kubelet, so some fields have no meaning here; `Workload.not_applied` lists them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ztprobe.documents.problem import shown
from ztprobe.errors import UsageError
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local.expansion import expand
from ztprobe.runtime.local.manifest_shapes import (
    CONTAINER_WITHOUT_MEANING,
    POD_WITHOUT_MEANING,
    as_decoded,
    check_shape,
)
from ztprobe.runtime.local.quantities import cpu_cores, memory_bytes

__all__ = ("SETTINGS", "ContainerPlan", "Mount", "PodPlan", "ServicePlan", "Workload", "plan", "settings_of")

Document = Mapping[str, Any]

# The ConfigMap whose values the command line replaces.
SETTINGS = "fl-workload"
# What pods of edge aggregators are labelled (`app`); there are none unless asked for.
_EDGE = "fl-edge"

# Kinds and fields that only an API server, a scheduler, an image or a kubelet can act on.
_KINDS_WITHOUT_MEANING = ("Namespace", "ServiceAccount", "Role", "RoleBinding")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A volume inside a container: files by name, or a Secret that the runtime makes."""

    path: PurePosixPath
    files: Mapping[str, str] = field(default_factory=dict)
    secret: str | None = None


@dataclass(frozen=True, kw_only=True)
class ContainerPlan:
    """One process of a pod."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    sidecar: bool  # starts before the application, and its end is not waited for
    startup_probe: bool = True  # a sidecar: the application starts once it is ready
    mounts: tuple[Mount, ...] = ()
    memory_limit_bytes: int | None = None
    cpu_limit: float | None = None  # cores
    one_log: bool = False  # standard error goes where standard output goes


@dataclass(frozen=True, kw_only=True)
class PodPlan:
    """One pod, with its sidecars before its application."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    service_account: str
    owner: str  # Deployment or Job
    containers: tuple[ContainerPlan, ...]
    # (protocol, name) -> number, as NetworkPolicies may name them
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)
    resolver_options: tuple[str, ...] = ()  # of /etc/resolv.conf, beside the kubelet's own

    @property
    def application(self) -> ContainerPlan:
        """The one container that is no sidecar."""
        return next(c for c in self.containers if not c.sidecar)

    @property
    def secret(self) -> str:
        """The (first) Secret that its containers see. :raises StopIteration: none sees one."""
        return next(m.secret for c in self.containers for m in c.mounts if m.secret is not None)


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    """A headless service: a name for the addresses of the pods it selects."""

    name: str
    namespace: str
    selector: Mapping[str, str]
    port: int

    @property
    def domain_name(self) -> str:
        """The name that cluster DNS answers for."""
        return f"{self.name}.{self.namespace}.svc.cluster.local"

    def selects(self, pod: PodPlan) -> bool:
        """Whether the pod stands behind this service."""
        return pod.namespace == self.namespace and self.selector.items() <= pod.labels.items()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything that the manifests of one security level ask for."""

    server: PodPlan
    clients: tuple[PodPlan, ...]
    service: ServicePlan
    policies: tuple[Document, ...]
    namespaces: Mapping[str, Mapping[str, str]]  # name -> labels: all that policies need of a namespace
    not_applied: tuple[str, ...]
    edges: tuple[PodPlan, ...] = ()
    edge_service: ServicePlan | None = None

    @property
    def namespace_objects(self) -> tuple[Document, ...]:
        """The namespaces."""
        return tuple(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}}
            for name, labels in self.namespaces.items()
        )

    @property
    def policy_objects(self) -> tuple[Document, ...]:
        """What verdicts of the policies rest on: namespaces, pods (without addresses), and the policies."""
        return (*self.namespace_objects, *(_pod_object(pod) for pod in self.pods), *self.policies)

    @property
    def round_deadline_s(self) -> float | None:
        """How long the server waits for its clients, and in each round for their updates."""
        said = self.server.application.env.get("FL_ROUND_DEADLINE_S")
        return None if said is None else float(said)

    @property
    def pods(self) -> tuple[PodPlan, ...]:
        """Server first, then edges."""
        return (self.server, *self.edges, *self.clients)

    @property
    def memory_limits_bytes(self) -> dict[str, int | None]:
        """POD/CONTAINER -> its limit; None: it has none."""
        return {f"{p.name}/{c.name}": c.memory_limit_bytes for p in self.pods for c in p.containers}

    @property
    def edge_names(self) -> dict[str, str]:
        """Domain name -> edge pod: each has its own below the edges' headless service."""
        if self.edge_service is None:
            return {}
        return {f"{pod.name}.{self.edge_service.domain_name}": pod.name for pod in self.edges}

    def served_names(self, service_account: str) -> list[str]:
        """Domain names that the account's pods are reached by, which its certificate is to be good for."""
        names = [self.service.domain_name] if service_account == self.server.service_account else []
        mine = [pod.name for pod in self.edges if pod.service_account == service_account]
        return names + [name for name, pod in self.edge_names.items() if pod in mine]


def _pod_object(pod: PodPlan) -> Document:
    # Which of its containers has a port is nothing to a policy.
    ports = [
        {"name": name, "containerPort": number, "protocol": protocol}
        for (protocol, name), number in sorted(pod.ports.items())
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": dict(pod.labels)},
        "spec": {"containers": [{"name": pod.application.name, "ports": ports}]},
    }


def plan(documents: Sequence[Document], options: WorkloadOptions) -> Workload:
    """Read rendered manifests; the options replace the defaults of ConfigMap ``fl-workload``.

    :raises UsageError: something is missing, or a field has no counterpart here.
    """
    by_kind: dict[str, list[Document]] = {}
    for decoded in map(as_decoded, documents):
        by_kind.setdefault(decoded["kind"], []).append(decoded)
    known = {"ConfigMap", "Deployment", "Job", "NetworkPolicy", "Service", *_KINDS_WITHOUT_MEANING}
    for kind in by_kind:
        if kind not in known:
            name = by_kind[kind][0]["metadata"]["name"]
            raise UsageError(f"manifests: {kind} {name}: the local runtime knows {', '.join(sorted(known))}")
    for document in (d for documents in by_kind.values() for d in documents):
        check_shape(document)
    configs = {d["metadata"]["name"]: dict(d.get("data") or {}) for d in by_kind.get("ConfigMap", [])}
    configs[SETTINGS] = configs.get(SETTINGS, {}) | settings_of(options)
    edge_jobs, edge_services = (_take_edges(by_kind, kind) for kind in ("Job", "Service"))
    deployment, job = _only(by_kind, "Deployment"), _only(by_kind, "Job")
    ignored: set[str] = {f"kind {kind}" for kind in _KINDS_WITHOUT_MEANING if kind in by_kind}
    _check_selector(deployment)
    server = _pod(deployment, deployment["metadata"]["name"], {}, configs, ignored)
    clients = _indexed(job, options.clients, configs, ignored)
    edges = [pod for j in edge_jobs for pod in _indexed(j, int(options.fl.get("edges", 0)), configs, ignored)]
    service = _service(_only(by_kind, "Service"))
    if not service.selects(server):
        raise UsageError(f"manifests: Service {service.name} does not select the pods of {server.name}")
    return Workload(
        server=server,
        clients=clients,
        service=service,
        policies=tuple(by_kind.get("NetworkPolicy", ())),
        namespaces={
            d["metadata"]["name"]: dict(d["metadata"].get("labels") or {})
            for d in by_kind.get("Namespace", ())
        },
        not_applied=tuple(sorted(ignored)),
        edges=tuple(edges),
        edge_service=_service(edge_services[0]) if edge_services else None,
    )


def _take_edges(by_kind: dict[str, list[Document]], kind: str) -> list[Document]:
    """The edges' documents of a kind, out of the others."""
    found = by_kind.get(kind, [])
    mine = [d for d in found if (d["metadata"].get("labels") or {}).get("app") == _EDGE]
    by_kind[kind] = [d for d in found if d not in mine]
    return mine


def _indexed(job: Document, count: int, configs: Mapping[str, Any], ignored: set[str]) -> tuple[PodPlan, ...]:
    """The pods of an indexed Job."""
    return tuple(
        _pod(job, f"{job['metadata']['name']}-{i}", {"JOB_COMPLETION_INDEX": str(i)}, configs, ignored)
        for i in range(count)
    )


def settings_of(options: WorkloadOptions) -> dict[str, str]:
    """What takes the place of the defaults in the ConfigMap of the workload's settings."""
    return {
        "FL_ROUNDS": str(options.rounds),
        "FL_CLIENTS": str(options.clients),
        "FL_SEED": str(options.seed),
        "FL_DISTRIBUTION": options.distribution,
        "FL_DATASET": options.dataset,
        "FL_DATA_DIR": "" if options.data_dir is None else str(options.data_dir.resolve()),
        "FL_RECONNECT": "1" if options.reconnect else "0",
        "FL_OPTIONS": json.dumps(dict(options.fl)) if options.fl else "",
        "FL_EDGES": str(options.fl.get("edges") or 0),
        **options.environment,
    }


def _only(by_kind: Mapping[str, list[Document]], kind: str) -> Document:
    found = by_kind.get(kind, [])
    if len(found) != 1:
        raise UsageError(f"manifests: {len(found)} documents of kind {kind}, expected one")
    return found[0]


def _check_selector(deployment: Document) -> None:
    # The API server refuses a Deployment that would not find its own pods.
    spec = deployment["spec"]
    wanted = spec["selector"].get("matchLabels") or {}
    labels = spec["template"].get("metadata", {}).get("labels") or {}
    if not wanted or not wanted.items() <= labels.items():
        name = deployment["metadata"]["name"]
        raise UsageError(
            f"manifests: Deployment {name}: field `spec.selector` does not match the labels of the template"
        )


def _service(document: Document) -> ServicePlan:
    metadata, spec = document["metadata"], document["spec"]
    return ServicePlan(
        name=metadata["name"],
        namespace=metadata.get("namespace") or "default",
        selector=spec.get("selector") or {},
        port=spec["ports"][0]["port"],
    )


def _pod(
    owner: Document, name: str, injected: Mapping[str, str], configs: Mapping[str, Any], ignored: set[str]
) -> PodPlan:
    where = f"{owner['kind']} {owner['metadata']['name']}"
    template = owner["spec"]["template"]
    spec = template["spec"]
    ignored |= {f"pod {key}" for key in POD_WITHOUT_MEANING if key in spec}
    namespace = owner["metadata"].get("namespace") or "default"
    volumes = {v["name"]: v for v in spec.get("volumes") or ()}
    fields = {"metadata.name": name, "metadata.namespace": namespace}
    containers: list[ContainerPlan] = []
    ports: dict[tuple[str, str], int] = {}
    for sidecar, section in ((True, "initContainers"), (False, "containers")):
        for raw in spec.get(section) or ():
            here = f"{where}: container {raw['name']}"
            if sidecar and raw.get("restartPolicy") != "Always":
                raise UsageError(f"manifests: {here}: init containers need `restartPolicy: Always`")
            if raw["name"] in (c.name for c in containers):
                raise UsageError(f"manifests: {here}: there is another of that name")
            ignored |= {f"container {key}" for key in CONTAINER_WITHOUT_MEANING if key in raw}
            ports |= {
                (p.get("protocol") or "TCP", p["name"]): p["containerPort"]
                for p in raw.get("ports") or ()
                if p.get("name")
            }
            mounts = tuple(_mount(here, m, volumes, configs) for m in raw.get("volumeMounts") or ())
            env = dict(injected) | _environment(here, raw, fields, configs)
            containers.append(_container(here, raw, env, sidecar, mounts))
    if sum(not c.sidecar for c in containers) != 1:
        raise UsageError(f"manifests: {where}: expected one container beside the sidecars")
    return PodPlan(
        name=name,
        namespace=namespace,
        labels=template.get("metadata", {}).get("labels") or {},
        service_account=spec.get("serviceAccountName") or "default",
        owner=owner["kind"],
        containers=tuple(containers),
        ports=ports,
        resolver_options=tuple(
            f"{one['name']}:{one['value']}" if one.get("value") else one["name"]
            for one in (spec.get("dnsConfig") or {}).get("options") or ()
        ),
    )


def _container(
    where: str, raw: Document, env: Mapping[str, str], sidecar: bool, mounts: tuple[Mount, ...]
) -> ContainerPlan:
    if not raw.get("command"):
        raise UsageError(f"manifests: {where}: field `command` is empty, and no image is here that has one")
    limits = (raw.get("resources") or {}).get("limits") or {}
    return ContainerPlan(
        name=raw["name"],
        command=tuple(expand(word, env) for word in (*raw["command"], *(raw.get("args") or ()))),
        env=env,
        sidecar=sidecar,
        startup_probe="startupProbe" in raw,
        mounts=mounts,
        memory_limit_bytes=memory_bytes(where, limits["memory"]) if "memory" in limits else None,
        cpu_limit=cpu_cores(where, limits["cpu"]) if "cpu" in limits else None,
    )


def _environment(
    where: str, raw: Document, fields: Mapping[str, str], configs: Mapping[str, Any]
) -> dict[str, str]:
    # In the kubelet's order: a reference sees what envFrom gave and the variables above it.
    env: dict[str, str] = {}
    for source in raw.get("envFrom") or ():
        reference = source["configMapRef"]
        if reference["name"] in configs:
            prefix = source.get("prefix", "")
            env |= {prefix + key: value for key, value in configs[reference["name"]].items()}
        elif not reference.get("optional"):
            raise UsageError(
                f"manifests: {where}: `envFrom` takes ConfigMap {reference['name']}, which is not here"
            )
    for item in raw.get("env") or ():
        name, value = item["name"], item.get("value", "")
        if "valueFrom" not in item:
            env[name] = expand(value, env)
            continue
        path = item["valueFrom"]["fieldRef"]["fieldPath"]
        if value or path not in fields:
            found = "a value and valueFrom" if value else shown(path)
            raise UsageError(
                f"manifests: {where}: field `env[{name}]` takes {found},"
                f" expected a value or one of {', '.join(fields)}"
            )
        env[name] = fields[path]
    return env


def _mount(where: str, raw: Document, volumes: Mapping[str, Document], configs: Mapping[str, Any]) -> Mount:
    volume = volumes.get(raw["name"], {})
    path = PurePosixPath(raw["mountPath"])
    # Containers get an empty /run of their own here; elsewhere a mount point would have to
    # be created in the machine's own file system.
    if PurePosixPath("/run") not in path.parents or ".." in path.parts:
        raise UsageError(f"manifests: {where}: mountPath {path}: the local runtime mounts below /run only")
    if "secret" in volume:
        return Mount(path=path, secret=volume["secret"]["secretName"])
    name = volume.get("configMap", {}).get("name")
    if name not in configs:
        raise UsageError(f"manifests: {where}: volume {raw['name']} is no known configMap or secret")
    return Mount(path=path, files=configs[name])
