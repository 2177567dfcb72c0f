"""Which network plugin a cluster has, and whether it is known to enforce NetworkPolicy.

The DaemonSets are asked, for no API says it. What is known of a plugin is its own documentation's word, and a
plugin may run as no DaemonSet: whether policies hold is proven by `ztprobe trace`, with packets, before
round 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ztprobe.kubernetes.api import Api

__all__ = ("NetworkPlugin", "network_plugins")

# Part of a DaemonSet's name -> the plugin, and whether it enforces NetworkPolicy.
_KNOWN = {
    "antrea-agent": ("Antrea", True),
    "aws-network-policy-agent": ("Amazon VPC CNI", True),
    "aws-node": ("Amazon VPC CNI", None),  # if its policy agent is switched on
    "azure-npm": ("Azure NPM", True),
    "calico-node": ("Calico", True),
    "canal": ("Canal", True),
    "cilium": ("Cilium", True),
    "kindnet": ("kindnet", None),  # since 0.24
    "kube-flannel": ("Flannel", False),
    "kube-network-policies": ("kube-network-policies", True),
    "kube-ovn-cni": ("Kube-OVN", True),
    "kube-router": ("kube-router", True),
    "ovnkube-node": ("OVN-Kubernetes", True),
    "weave-net": ("Weave Net", True),
}


@dataclass(frozen=True, kw_only=True)
class NetworkPlugin:
    """One that a DaemonSet is known by."""

    name: str
    daemonset: str  # NAMESPACE/NAME
    enforces: bool | None  # None: in some versions or settings


def network_plugins(api: Api) -> list[NetworkPlugin]:
    """Those whose DaemonSets are there.

    :raises PreflightError: the API refuses to list DaemonSets, or does not answer.
    """
    return sorted(_found(api), key=lambda one: one.daemonset)


def _found(api: Api) -> Iterator[NetworkPlugin]:
    for one in api.everywhere("daemonsets", "apps", "v1") or ():
        name, place = one["metadata"].get("name") or "", one["metadata"].get("namespace") or ""
        # Longer parts first: they are about one plugin more exactly.
        for part in sorted(_KNOWN, key=len, reverse=True):
            if part in name:
                plugin, enforces = _KNOWN[part]
                yield NetworkPlugin(name=plugin, daemonset=f"{place}/{name}", enforces=enforces)
                break
