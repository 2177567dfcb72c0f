"""What is asked of a cluster and not to be had there: each is refused in one line."""

from __future__ import annotations

from collections.abc import Mapping

from ztprobe.errors import UsageError
from ztprobe.kubernetes.api import Object
from ztprobe.kubernetes.pod_source import Cluster
from ztprobe.runtime.cluster import pod_states
from ztprobe.runtime.interface import WorkloadOptions

__all__ = ("refuse_apart", "refuse_away", "refuse_options")

_WHERE = "--runtime kubernetes"
_FEW = 3


def refuse_options(options: WorkloadOptions) -> None:
    """:raises UsageError: something is asked for that is not to be had on a cluster."""
    if options.mutual_tls:
        raise UsageError(
            f"sec{options.level}: with {_WHERE} trace brings up sec0 and sec1, sidecars not yet; `ztprobe"
            " deploy experiment` puts them on a cluster, and trace --attach watches them there"
        )
    if options.later_level is not None:
        raise UsageError(f"--switch-level: is for this machine's own runtime, not for {_WHERE}")
    if options.fl.get("edges"):
        raise UsageError(f"--fl-edges: is for this machine's own runtime, not for {_WHERE}")


def refuse_apart(cluster: Cluster, objects: Mapping[str, Object], count: int) -> None:
    """As soon as it is known that pods are elsewhere.

    :param objects: by name: what the API says of pods.
    :param count: of all pods that there will be.
    :raises UsageError: they are.
    """
    nodes = {name: where for name, pod in objects.items() if (where := pod_states.node_of(pod))}
    # A node's name that was guessed says nothing as long as all are on one: what is seen will.
    if cluster.is_named or len(set(nodes.values())) > 1:
        away = {name: where for name, where in nodes.items() if where != cluster.node}
        refuse_away(away, cluster.node, count)


def refuse_away(away: Mapping[str, str], node: str, count: int) -> None:
    """:param away: pod's name -> its node, which is not this one.
    :param count: of all pods.
    :raises UsageError: there is one.
    """
    if not away:
        return
    listed = ", ".join(f"{name} on {where}" for name, where in sorted(away.items())[:_FEW])
    more = f" and {len(away) - _FEW} more" if len(away) > _FEW else ""
    remedy = f"--node {node} keeps the whole run here" if len(away) < count else "run ztprobe there"
    raise UsageError(
        f"{listed}{more}, and this is node {node}: only pods of this node can be traced yet; {remedy}"
    )
