"""What is asked of a cluster and not to be had there: each is refused in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ztprobe.errors import PreflightError, UsageError
from ztprobe.kubernetes.api import Api, Object
from ztprobe.kubernetes.pod_source import Cluster
from ztprobe.runtime.cluster import pod_states
from ztprobe.runtime.interface import WorkloadOptions

__all__ = ("refuse_apart", "refuse_away", "refuse_old", "refuse_options")

_WHERE = "--runtime kubernetes"
_FEW = 3
_WITH_SIDECARS = (2, 3)
# https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/
_SIDECARS_SINCE = (1, 29)


def refuse_options(options: WorkloadOptions) -> None:
    """:raises UsageError: something is asked for that is not to be had on a cluster."""
    if options.later_level is not None:
        raise UsageError(f"--switch-level: is for this machine's own runtime, not for {_WHERE}")
    if options.fl.get("edges"):
        raise UsageError(f"--fl-edges: is for this machine's own runtime, not for {_WHERE}")


def refuse_old(api: Api, levels: Iterable[int]) -> None:
    """:raises PreflightError: a level has sidecars, and the API server is too old to know them."""
    level = next((level for level in levels if level in _WITH_SIDECARS), None)
    if level is None:
        return
    version, named = api.version()
    if version < _SIDECARS_SINCE:
        raise PreflightError(
            f"sec{level}: this cluster's API server is Kubernetes {named or '.'.join(map(str, version))}, and"
            f" sidecars (init containers that go on) need {'.'.join(map(str, _SIDECARS_SINCE))} or newer;"
            " sec0 and sec1 run there"
        )


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
        f"{listed}{more}, and this is node {node}: {remedy}, and --agents traces pods"
        " wherever they are, through their nodes' agents"
    )
