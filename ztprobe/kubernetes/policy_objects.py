"""The objects of a live cluster that NetworkPolicies and their cluster-wide kin are about."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ztprobe.errors import PreflightError
from ztprobe.kubernetes.api import Api
from ztprobe.policy.manifests import read_documents
from ztprobe.policy.model import Objects
from ztprobe.policy.objects import read_objects

__all__ = ("cluster_documents", "cluster_objects")

_POLICY = "policy.networking.k8s.io"
# Kind, group, version, name in paths; without these nothing can be said.
_NEEDED = (
    ("Namespace", "", "v1", "namespaces"),
    ("Pod", "", "v1", "pods"),
    ("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies"),
    ("ClusterNetworkPolicy", _POLICY, "v1alpha2", "clusternetworkpolicies"),
    ("AdminNetworkPolicy", _POLICY, "v1alpha1", "adminnetworkpolicies"),
    ("BaselineAdminNetworkPolicy", _POLICY, "v1alpha1", "baselineadminnetworkpolicies"),
)
# Not everybody may read nodes; a verdict that needs them says that they are missing.
_USEFUL = (("Service", "", "v1", "services"), ("Node", "", "v1", "nodes"))
# What verdicts are about, of metadata and of a pod; the rest may be secret, and changes all the time.
_METADATA = ("name", "namespace", "labels")
_OF_CONTAINERS = ("name", "ports", "restartPolicy")
_OF_POD_STATUS = ("phase", "podIP", "podIPs", "hostIP", "hostIPs")
_OF_NODE_STATUS = ("addresses",)
_OF_SERVICE_SPEC = ("clusterIP", "clusterIPs", "selector", "ports", "type", "externalIPs")


def cluster_objects(api: Api) -> Objects:
    """All of them, as they are now, of every namespace.

    :raises PreflightError: the API refuses or does not answer; says what is missing.
    :raises UsageError: a policy is not understood; names it and its field.
    """
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": cluster_documents(api)})
    return read_objects(read_documents(text, "the cluster's objects"))


def cluster_documents(api: Api) -> list[dict[str, Any]]:
    """As `cluster_objects`, as Kubernetes writes them, and of each what a verdict may rest on.

    :raises PreflightError: the API refuses or does not answer; says what is missing.
    """
    found = []
    for kind, group, version, plural in (*_NEEDED, *_USEFUL):
        try:
            items = api.everywhere(plural, group, version) or ()
        except PreflightError:
            if (kind, group, version, plural) in _NEEDED:
                raise
            continue
        # Items of a list do not say again what they are.
        named = {"apiVersion": f"{group}/{version}" if group else version, "kind": kind}
        found += [named | _what_counts(kind, item) for item in items]
    return found


def _what_counts(kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
    metadata = _of(item["metadata"], _METADATA)
    spec, status = item.get("spec") or {}, item.get("status") or {}
    if kind == "Pod":
        containers = {
            title: [_of(container, _OF_CONTAINERS) for container in spec.get(title) or ()]
            for title in ("initContainers", "containers")
        }
        kept = _of(spec, ("hostNetwork", "nodeName")) | containers
        return {"metadata": metadata, "spec": kept, "status": _of(status, _OF_POD_STATUS)}
    if kind == "Node":
        return {"metadata": metadata, "status": _of(status, _OF_NODE_STATUS)}
    if kind == "Service":
        return {"metadata": metadata, "spec": _of(spec, _OF_SERVICE_SPEC)}
    return {"metadata": metadata} | ({} if kind == "Namespace" else {"spec": spec})


def _of(mapping: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: mapping[name] for name in names if mapping.get(name) is not None}
