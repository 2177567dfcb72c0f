"""The objects of a live cluster that NetworkPolicies and their cluster-wide kin are about."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ztprobe.errors import PreflightError
from ztprobe.kubernetes.api import Api
from ztprobe.policy.manifests import Document, read_documents
from ztprobe.policy.model import Objects
from ztprobe.policy.objects import read_objects

__all__ = ("cluster_objects",)

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


def cluster_objects(api: Api) -> Objects:
    """All of them, as they are now, of every namespace.

    :raises PreflightError: the API refuses or does not answer; says what is missing.
    :raises UsageError: a policy is not understood; names it and its field.
    """
    return read_objects(_documents(api))


def _documents(api: Api) -> Iterator[Document]:
    for kind, group, version, plural in (*_NEEDED, *_USEFUL):
        try:
            found = api.everywhere(plural, group, version)
        except PreflightError:
            if (kind, group, version, plural) in _NEEDED:
                raise
            continue
        # Items of a list do not say again what they are.
        named = {"apiVersion": f"{group}/{version}" if group else version, "kind": kind}
        items = [{**named, **item} for item in found or ()]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        yield from read_documents(text, f"the cluster's {plural}")
