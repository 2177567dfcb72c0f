"""What the manifests ask to run, as plain values: pods, containers, services, policies.

Pure: documents and options in, plan out. The local runtime has no scheduler, no image
registry and no kubelet, so some fields have no meaning here; those are listed in
``_WITHOUT_MEANING`` and reported by `Workload.not_applied`. A field that is in none of
the lists is refused by name, because it may be the one that makes a cluster behave
differently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ztprobe.errors import UsageError
from ztprobe.runtime.base import WorkloadOptions

__all__ = ("ContainerPlan", "Mount", "PodPlan", "ServicePlan", "Workload", "plan")

Document = Mapping[str, Any]

# The ConfigMap whose values the command line replaces.
SETTINGS = "fl-workload"
# What pods of edge aggregators are labelled (`app`); there are none unless asked for.
_EDGE = "fl-edge"

# Kinds and fields that only an API server, a scheduler, an image or a kubelet can act on.
_KINDS_WITHOUT_MEANING = ("Namespace", "ServiceAccount", "Role", "RoleBinding")
_POD_WITHOUT_MEANING = {
    "automountServiceAccountToken",
    "enableServiceLinks",
    "restartPolicy",
    "securityContext",
}
_CONTAINER_WITHOUT_MEANING = {"image", "imagePullPolicy", "securityContext", "startupProbe", "restartPolicy"}
_POD_FIELDS = {
    "serviceAccountName",
    "containers",
    "initContainers",
    "volumes",
    "subdomain",
} | _POD_WITHOUT_MEANING
_CONTAINER_FIELDS = {
    "name",
    "command",
    "args",
    "env",
    "envFrom",
    "ports",
    "resources",
    "volumeMounts",
} | _CONTAINER_WITHOUT_MEANING
_UNITS_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


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
    sidecar: bool  # starts before the application and is not waited for
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

    @property
    def application(self) -> ContainerPlan:
        """The one container that is no sidecar."""
        return next(c for c in self.containers if not c.sidecar)


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
    not_applied: tuple[str, ...]
    edges: tuple[PodPlan, ...] = ()
    edge_service: ServicePlan | None = None

    @property
    def pods(self) -> tuple[PodPlan, ...]:
        """Server first, then edges."""
        return (self.server, *self.edges, *self.clients)

    @property
    def edge_names(self) -> dict[str, str]:
        """Domain name -> edge pod: each has its own below the edges' headless service."""
        if self.edge_service is None:
            return {}
        return {f"{pod.name}.{self.edge_service.domain_name}": pod.name for pod in self.edges}


def plan(documents: Sequence[Document], options: WorkloadOptions) -> Workload:
    """Read rendered manifests; the options replace the defaults of ConfigMap ``fl-workload``.

    :raises UsageError: something is missing, or a field has no counterpart here.
    """
    by_kind: dict[str, list[Document]] = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    known = {"ConfigMap", "Deployment", "Job", "NetworkPolicy", "Service", *_KINDS_WITHOUT_MEANING}
    for kind in by_kind:
        if kind not in known:
            name = by_kind[kind][0]["metadata"]["name"]
            raise UsageError(f"manifests: {kind} {name}: the local runtime knows {', '.join(sorted(known))}")
    configs = {d["metadata"]["name"]: dict(d.get("data") or {}) for d in by_kind.get("ConfigMap", [])}
    configs[SETTINGS] = configs.get(SETTINGS, {}) | _settings(options)
    edge_jobs, edge_services = (_take_edges(by_kind, kind) for kind in ("Job", "Service"))
    deployment, job = _only(by_kind, "Deployment"), _only(by_kind, "Job")
    ignored: set[str] = {f"kind {kind}" for kind in _KINDS_WITHOUT_MEANING if kind in by_kind}
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


def _settings(options: WorkloadOptions) -> dict[str, str]:
    return {
        "FL_ROUNDS": str(options.rounds),
        "FL_CLIENTS": str(options.clients),
        "FL_SEED": str(options.seed),
        "FL_DISTRIBUTION": options.distribution,
        "FL_DATASET": options.dataset,
        "FL_DATA_DIR": "" if options.data_dir is None else str(options.data_dir.resolve()),
        "FL_RECONNECT": "1" if options.reconnect else "0",
        "FL_OPTIONS": json.dumps(dict(options.fl)) if options.fl else "",
        **options.environment,
    }


def _only(by_kind: Mapping[str, list[Document]], kind: str) -> Document:
    found = by_kind.get(kind, [])
    if len(found) != 1:
        raise UsageError(f"manifests: {len(found)} documents of kind {kind}, expected one")
    return found[0]


def _refuse_unknown(where: str, value: Mapping[str, Any], known: set[str]) -> None:
    for key in value:
        if key not in known:
            raise UsageError(f"manifests: {where}: field `{key}` is not supported by the local runtime")


def _service(document: Document) -> ServicePlan:
    metadata, spec = document["metadata"], document["spec"]
    where = f"Service {metadata['name']}"
    _refuse_unknown(where, spec, {"clusterIP", "publishNotReadyAddresses", "selector", "ports", "type"})
    if spec.get("clusterIP") != "None" or len(spec.get("ports") or ()) != 1:
        raise UsageError(f"manifests: {where}: expected `clusterIP: None` and one port")
    return ServicePlan(
        name=metadata["name"],
        namespace=metadata.get("namespace", "default"),
        selector=dict(spec.get("selector") or {}),
        port=int(spec["ports"][0]["port"]),
    )


def _pod(
    owner: Document, name: str, injected: Mapping[str, str], configs: Mapping[str, Any], ignored: set[str]
) -> PodPlan:
    where = f"{owner['kind']} {owner['metadata']['name']}"
    template = owner["spec"]["template"]
    spec = template["spec"]
    _refuse_unknown(f"{where}: pod", spec, _POD_FIELDS)
    ignored |= {f"pod {key}" for key in _POD_WITHOUT_MEANING & set(spec)}
    namespace = owner["metadata"].get("namespace", "default")
    labels = dict(template["metadata"].get("labels") or {})
    volumes = {v["name"]: v for v in spec.get("volumes") or ()}
    fields = {"metadata.name": name, "metadata.namespace": namespace}
    containers: list[ContainerPlan] = []
    ports: dict[tuple[str, str], int] = {}
    for sidecar, section in ((True, "initContainers"), (False, "containers")):
        for raw in spec.get(section) or ():
            here = f"{where}: container {raw.get('name')}"
            _refuse_unknown(here, raw, _CONTAINER_FIELDS)
            if sidecar and raw.get("restartPolicy") != "Always":
                raise UsageError(f"manifests: {here}: init containers need `restartPolicy: Always`")
            ignored |= {f"container {key}" for key in _CONTAINER_WITHOUT_MEANING & set(raw)}
            limits = (raw.get("resources") or {}).get("limits") or {}
            ports |= {
                (p.get("protocol", "TCP"), p["name"]): int(p["containerPort"])
                for p in raw.get("ports") or ()
                if "name" in p
            }
            containers.append(
                ContainerPlan(
                    name=raw["name"],
                    command=tuple(raw.get("command") or ()) + tuple(raw.get("args") or ()),
                    env=_environment(here, raw, fields, configs) | ({} if sidecar else dict(injected)),
                    sidecar=sidecar,
                    mounts=tuple(_mount(here, m, volumes, configs) for m in raw.get("volumeMounts") or ()),
                    memory_limit_bytes=_bytes(here, limits["memory"]) if "memory" in limits else None,
                    cpu_limit=_cores(here, limits["cpu"]) if "cpu" in limits else None,
                )
            )
    if sum(not c.sidecar for c in containers) != 1:
        raise UsageError(f"manifests: {where}: expected one container beside the sidecars")
    return PodPlan(
        name=name,
        namespace=namespace,
        labels=labels,
        service_account=spec.get("serviceAccountName", "default"),
        owner=owner["kind"],
        containers=tuple(containers),
        ports=ports,
    )


def _environment(
    where: str, raw: Document, fields: Mapping[str, str], configs: Mapping[str, Any]
) -> dict[str, str]:
    env: dict[str, str] = {}
    for source in raw.get("envFrom") or ():
        name = str((source.get("configMapRef") or {}).get("name"))
        if set(source) != {"configMapRef"} or name not in configs:
            raise UsageError(f"manifests: {where}: `envFrom` is {source}, expected a known configMapRef")
        env |= configs[name]
    for item in raw.get("env") or ():
        if "value" in item:
            env[item["name"]] = str(item["value"])
            continue
        path = str(((item.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath"))
        if path not in fields:
            raise UsageError(
                f"manifests: {where}: field `env[{item['name']}]` takes {path!r},"
                f" expected a value or one of {', '.join(fields)}"
            )
        env[item["name"]] = fields[path]
    return env


def _mount(where: str, raw: Document, volumes: Mapping[str, Document], configs: Mapping[str, Any]) -> Mount:
    volume = volumes.get(raw.get("name", ""), {})
    path = PurePosixPath(raw["mountPath"])
    # Containers get an empty /run of their own here; elsewhere a mount point would have to
    # be created in the machine's own file system.
    if PurePosixPath("/run") not in path.parents:
        raise UsageError(f"manifests: {where}: mountPath {path}: the local runtime mounts below /run only")
    if "secret" in volume:
        return Mount(path=path, secret=volume["secret"]["secretName"])
    name = str((volume.get("configMap") or {}).get("name"))
    if name not in configs:
        raise UsageError(f"manifests: {where}: volume {raw.get('name')} is no known configMap or secret")
    return Mount(path=path, files=configs[name])


def _bytes(where: str, text: Any) -> int:
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text))
    if match is None or match[2] not in _UNITS_BYTES:
        raise UsageError(f"manifests: {where}: memory limit {text!r}, expected something like 512Mi")
    return int(match[1]) * _UNITS_BYTES[match[2]]


def _cores(where: str, text: Any) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", str(text))
    if match is None:
        raise UsageError(f"manifests: {where}: CPU limit {text!r}, expected something like 500m or 2")
    return float(match[1]) / (1000 if match[2] else 1)
