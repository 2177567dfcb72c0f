"""An experiment's workload as pods that are to be traced, made from what `deploy` applies. Pure.

No Jobs: whoever traces says himself when a run has ended, a pod that is refused is refused to his face, and
none is ever started again. So the pods have the names that they have on the local runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ztprobe.runtime.cluster.gate import gated
from ztprobe.runtime.local.kustomize import Document

__all__ = ("traced_pods",)

_INDEX = "JOB_COMPLETION_INDEX"


def traced_pods(documents: Sequence[Document], node: str | None = None) -> list[Document]:
    """The documents with pods, each behind a gate, in the place of Jobs.

    :param documents: of `ztprobe.runtime.cluster.experiment.experiment_documents`.
    :param node: by name: no pod is put elsewhere.
    """
    found: list[Document] = []
    for document in documents:
        found += _pods_of(document, node) if document["kind"] == "Job" else [document]
    return found


def _pods_of(job: Document, node: str | None) -> list[Document]:
    name, spec = job["metadata"]["name"], job["spec"]
    template = spec["template"]
    if spec.get("completionMode") != "Indexed":
        return [_pod(job, name, gated(_placed(template["spec"], node)))]
    return [
        _pod(job, f"{name}-{index}", gated(_placed(_numbered(template["spec"], index), node)))
        for index in range(spec["completions"])
    ]


def _pod(job: Document, name: str, spec: dict[str, Any]) -> Document:
    metadata = job["spec"]["template"].get("metadata", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "name": name, "namespace": job["metadata"]["namespace"]},
        "spec": {**spec, "restartPolicy": "Never"},
    }


def _numbered(spec: dict[str, Any], index: int) -> dict[str, Any]:
    """As the Job controller does it: each container is told its pod's number."""
    number = {"name": _INDEX, "value": str(index)}
    sections = {
        section: [one | {"env": [number, *one.get("env", ())]} for one in spec[section]]
        for section in ("initContainers", "containers")
        if section in spec
    }
    return spec | sections


def _placed(spec: dict[str, Any], node: str | None) -> dict[str, Any]:
    if node is None:
        return spec
    # By the node's name, as a DaemonSet's pods: the label of the host's name may be another.
    named = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [named]}}
    return spec | {"affinity": {"nodeAffinity": required}}
