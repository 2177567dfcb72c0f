"""Deployments on a cluster's nodes, observed through agents: what `trace` and `diagnose` ask for alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ztprobe.cli.agent_options import agent_access, tls_files
from ztprobe.cli.options import cluster_access
from ztprobe.errors import UsageError

if TYPE_CHECKING:
    from ztprobe.attach.nodes.request import NodesRequest

__all__ = ("are_asked", "named", "nodes_request")

_OPTIONS = {
    "--context": "context",
    "--kubeconfig": "kubeconfig",
    "--agents-in": "agents_in",
    "--cert": "cert",
    "--key": "key",
    "--ca": "authority",
}
# What somebody on the node could see, and agents do not tell.
_ONLY_ON_A_NODE = {"hub_targets": "--hub", "events_from": "--events-from"}


def are_asked(given: Mapping[str, Any]) -> bool:
    """Whether agents are to see. :param given: the command's values."""
    return bool(given["through"] or given["addresses"])


def named(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of a cluster and its agents, by the options' names."""
    return {option: given[name] for option, name in _OPTIONS.items() if given.get(name)}


def nodes_request(
    given: Mapping[str, Any],
    *,
    server: str | None,
    clients: Sequence[str],
    for_s: float | None = None,
    rounds: int | None = None,
) -> NodesRequest:
    """Check what was typed.

    :raises UsageError: something of it cannot be meant.
    :raises PreflightError: the cluster has no agents, or does not give a certificate for them.
    """
    from ztprobe.attach.nodes.request import NodesRequest, pod_targets

    for name, option in _ONLY_ON_A_NODE.items():
        if given.get(name):
            raise UsageError(f"{option}: is for a trace on the node itself, without --agents and --agent")
    if server is None:
        raise UsageError("--server is missing: the labels of the server's pod, such as app=fl-server")
    targets = pod_targets(server, clients)
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
    return NodesRequest(
        api=cluster.api(),
        namespace=cluster.namespace,
        server=targets[0],
        clients=targets[1],
        agents=tuple(access.agents()),
        tls=access.tls(),
        for_s=for_s,
        rounds=rounds,
    )
