"""The pods that a profile is put on, and those that it is towards, on whichever nodes: by the API alone."""

from __future__ import annotations

from dataclasses import dataclass

from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.pod_source import in_front, matching, named_pod, refuse_hosts_network
from ztprobe.pods.model import Pod
from ztprobe.pods.selectors import Selector

__all__ = ("SelectedPods", "selected_pods")


@dataclass(frozen=True, kw_only=True)
class SelectedPods:
    """Names, addresses, UIDs and nodes; their nodes' kernels know the rest."""

    pods: tuple[Pod, ...]
    peers: tuple[Pod, ...] | None  # Services' cluster addresses among them; None: towards anyone
    notes: tuple[str, ...]  # for people: what was left out


def selected_pods(api: Api, selector: Selector, to: Selector | None, namespace: str) -> SelectedPods:
    """The running pods that the selectors mean now.

    :raises UsageError: one means none; says what there is.
    :raises PreflightError: the API refuses.
    :raises EnforcementError: a pod is not to be touched (hostNetwork), or none of them runs yet.
    """
    found, notes = matching(api, selector, namespace)
    for pod in found:
        refuse_hosts_network(pod)
    pods = tuple(named_pod(pod) for pod in found)
    if to is None:
        return SelectedPods(pods=pods, peers=None, notes=notes)
    others, more = matching(api, to, namespace, option="--to")
    peers = tuple(named_pod(pod) for pod in others)
    services, unmet = in_front(api, namespace, peers)
    return SelectedPods(pods=pods, peers=(*peers, *services), notes=(*notes, *more, *unmet))
