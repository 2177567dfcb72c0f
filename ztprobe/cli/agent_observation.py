"""A cluster's nodes through their agents: what `trace` and `diagnose` ask for alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ztprobe.cli.agent_options import agent_access, tls_files
from ztprobe.cli.options import cluster_access
from ztprobe.errors import UsageError

if TYPE_CHECKING:
    from ztprobe.attach.nodes.request import NodesRequest
    from ztprobe.cli.agent_options import AgentAccess
    from ztprobe.kubernetes.access import ClusterAccess

__all__ = ("are_asked", "experiment_agents", "named", "nodes_request", "refuse_without_agents")

_OPTIONS = {
    "--context": "context",
    "--kubeconfig": "kubeconfig",
    "--agents-in": "agents_in",
    "--cert": "cert",
    "--key": "key",
    "--ca": "authority",
}
_OF_AGENTS = ("agents_in", "cert", "key", "authority")
# What somebody on the node could see, and agents do not tell.
_ONLY_ON_A_NODE = {"hub_targets": "--hub", "events_from": "--events-from"}


def are_asked(given: Mapping[str, Any]) -> bool:
    """Whether agents are to see. :param given: the command's values."""
    return bool(given["through"] or given["addresses"])


def named(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of a cluster and its agents, by the options' names."""
    return {option: given[name] for option, name in _OPTIONS.items() if given.get(name)}


def refuse_without_agents(given: Mapping[str, Any]) -> None:
    """:raises UsageError: something is said of agents, and none is asked."""
    for option in named({name: given[name] for name in _OF_AGENTS}):
        raise UsageError(f"{option}: is about agents: give --agents, or --agent ADDRESS")


def experiment_agents(given: Mapping[str, Any]) -> AgentAccess | None:
    """How agents are reached that are to bring up and watch an experiment; None: none are to.

    :param given: the command's values, of a cluster.
    :raises UsageError: options that do not go together.
    """
    if not are_asked(given):
        refuse_without_agents(given)
        return None
    return _access(given)[1]


def _access(given: Mapping[str, Any]) -> tuple[ClusterAccess, AgentAccess]:
    cluster = cluster_access(
        "kubernetes",
        given["context"],
        given["kubeconfig"],
        namespace=given["namespace"],
        node=given.get("node"),
    )
    files = tls_files(given["cert"], given["key"], given["authority"], "--ca")
    access = agent_access(cluster, given["through"], given["addresses"], given["agents_in"], files)
    assert access is not None
    assert cluster is not None
    return cluster, access


def nodes_request(
    given: Mapping[str, Any],
    *,
    server: str | None,
    clients: Sequence[str],
    for_s: float | None = None,
    rounds: int | None = None,
    stall_after_s: float | None = None,
) -> NodesRequest:
    """Check what was typed.

    :raises UsageError: something of it cannot be meant.
    :raises PreflightError: the cluster has no agents, or does not give a certificate for them.
    """
    from ztprobe.attach.nodes.request import NodesRequest, pod_targets
    from ztprobe.experiment.request import STALL_AFTER_S

    for name, option in _ONLY_ON_A_NODE.items():
        if given.get(name):
            raise UsageError(f"{option}: is for a trace on the node itself, without --agents and --agent")
    if server is None:
        raise UsageError("--server is missing: the labels of the server's pod, such as app=fl-server")
    targets = pod_targets(server, clients)
    cluster, access = _access(given)
    return NodesRequest(
        api=cluster.api(),
        namespace=cluster.namespace,
        server=targets[0],
        clients=targets[1],
        agents=tuple(access.agents()),
        tls=access.tls(),
        for_s=for_s,
        rounds=rounds,
        stall_after_s=STALL_AFTER_S if stall_after_s is None else stall_after_s,
    )
