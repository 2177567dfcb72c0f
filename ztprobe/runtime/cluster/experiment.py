"""An experiment's workload for a cluster: the manifests of its level, as one run. Pure but for new keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import UsageError
from ztprobe.runtime.cluster.rewriting import in_namespace, labelled, once, tls_secret, with_image
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local.certificates import Authority
from ztprobe.runtime.local.kustomize import Document, render
from ztprobe.runtime.local.workload import SETTINGS, Workload, plan, settings_of

__all__ = ("IMAGE", "experiment_documents")

IMAGE = "ztprobe/fl"
_MANIFESTS_NAMESPACE = "fl"


def experiment_documents(
    run: str,
    options: WorkloadOptions,
    *,
    namespace: str | None = None,
    linkerd: bool = False,
    image: str | None = None,
    manifests_dir: Path = paths.MANIFESTS_DIR,
) -> list[Document]:
    """Everything that a run is made of, in the order in which it is to be applied.

    :param run: its label, and the end of its namespace's name.
    :param namespace: one that is there, instead of one that is made and removed with the run.
    :param linkerd: mutual TLS by Linkerd's proxies instead of ours.
    :param image: of the workload, instead of the one that the manifests name.
    :raises UsageError: there are no manifests for what is asked.
    """
    if options.data_dir is not None:
        raise UsageError("--data-dir: is a directory of this machine, which pods of a cluster do not see")
    edges = "-edges" if options.fl.get("edges") else ""
    overlay = manifests_dir / "overlays" / f"sec{options.level}{edges}"
    if linkerd:
        if options.level != 3 or edges:
            raise UsageError("--mtls linkerd: there are manifests for sec3 without edges alone")
        overlay = manifests_dir / "mtls-linkerd"
    if not overlay.is_dir():
        raise UsageError(f"--fl-edges: {overlay} is missing, which sec{options.level} needs with edges")
    documents = render(overlay)
    workload = plan(documents, options)
    place = namespace or f"fl-{run}"
    accounts = sorted({pod.service_account for pod in workload.pods})
    documents = in_namespace(documents, _MANIFESTS_NAMESPACE, place, accounts)
    documents = [_settled(once(document), options) for document in documents]
    documents += _certificates(run, workload, place)
    if image is not None:
        documents = [with_image(document, IMAGE, image) for document in documents]
    if namespace is not None:
        documents = [document for document in documents if document["kind"] != "Namespace"]
    return sorted(labelled(documents, run), key=_order)


def _certificates(run: str, workload: Workload, namespace: str) -> list[Document]:
    authority, made = Authority(run), {}
    for pod in workload.pods:
        for secret in (mount.secret for c in pod.containers for mount in c.mounts if mount.secret):
            names = workload.served_names(pod.service_account)
            ends = (f".{_MANIFESTS_NAMESPACE}.svc.cluster.local", f".{namespace}.svc.cluster.local")
            dns_names = [name.replace(*ends) for name in names]
            if secret not in made:
                made[secret] = tls_secret(authority, secret, namespace, pod.service_account, dns_names)
    return list(made.values())


def _settled(document: Document, options: WorkloadOptions) -> Document:
    """With what the command line asks for: the workload's settings, and as many pods."""
    if document["kind"] == "ConfigMap" and document["metadata"]["name"] == SETTINGS:
        return document | {"data": document["data"] | settings_of(options)}
    spec = document.get("spec", {})
    if spec.get("completionMode") != "Indexed":
        return document
    edges = document["metadata"].get("labels", {}).get("app") == "fl-edge"
    count = int(options.fl["edges"]) if edges else options.clients
    return document | {"spec": spec | {"completions": count, "parallelism": count}}


def _order(document: Mapping[str, Any]) -> int:
    # Policies before pods: the first packet meets them. The server before its clients saves them a wait.
    kinds = ("Namespace", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "ConfigMap", "Secret")
    if document["kind"] in kinds:
        return kinds.index(document["kind"])
    numbered = document.get("spec", {}).get("completionMode") == "Indexed"
    return len(kinds) + (2 if numbered else 1 if document["kind"] == "Job" else 0)
