"""Who serves whom in a run, as run.json tells it: pods, where they listen, which have a sidecar.

The agent found it by the sockets that pods had open (`ztprobe.agent.endpoints`). Nothing of it is
assumed here: neither a port, nor a label, nor that a security level brings sidecars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ("Roles", "roles_of")


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The parts that pods play in a run."""

    server: str  # whose log the rounds are from
    ports: frozenset[int]  # at which it can be reached from other pods
    clients: tuple[
        str, ...
    ]  # that it serves, or would: no edge aggregator serves them, and they serve nobody
    behind_sidecar: frozenset[str]  # pods whose application speaks to another container over loopback
    sidecars_ns: int  # since when; 0: from the start
    # Those of the clients that serve others in turn (edge aggregators) -> whom, and at which ports.
    edges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    edge_ports: Mapping[str, frozenset[int]] = field(default_factory=dict)


def roles_of(meta: Mapping[str, Any]) -> Roles:
    """Read them from run.json.

    :raises ValueError: it does not say, or what it says does not fit together; says what.
    """
    told = meta.get("topology")
    if told is None:
        raise ValueError("does not say who serves whom, as every run does by now: trace it again")
    try:
        server, serves = told["rounds_of"], told["serves"]
        open_ports = [(one["pod"], int(one["port"])) for one in told["endpoints"] if one["reachable"]]
        ports = {port for pod, port in open_ports if pod == server}
        # Whom one of its clients serves in turn (an edge aggregator) is not the server's own client.
        others = {client for edge in serves.get(server, ()) for client in serves.get(edge, ())}
        clients = tuple(
            pod
            for pod in told["pods"]
            if pod != server and (pod in serves.get(server, ()) or not (serves.get(pod) or pod in others))
        )
        edges = {pod: tuple(serves[pod]) for pod in clients if serves.get(pod)}
        edge_ports = {pod: frozenset(port for owner, port in open_ports if owner == pod) for pod in edges}
        behind_sidecar = frozenset(told["behind_sidecar"])
        sidecars_ns = int((meta.get("level_switch") or {}).get("sidecars_ns") or 0)
        named = {server, *clients, *(pod for served in edges.values() for pod in served)}
        unknown = named - {pod["name"] for pod in meta["pods"]}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"topology: {error} is not as ztprobe writes it") from error
    if unknown:
        raise ValueError(f"topology: {min(unknown)} is none of the pods")
    # A run that failed, or that goes on, may not have come so far.
    if (not ports or not clients) and not {"failed", "so_far"} & set(meta):
        raise ValueError(
            f"topology: {server} was reached at {len(ports)} ports and serves {len(clients)} pods, "
            "expected at least one of each"
        )
    return Roles(
        server=server,
        ports=frozenset(ports),
        clients=clients,
        behind_sidecar=behind_sidecar,
        sidecars_ns=sidecars_ns,
        edges=edges,
        edge_ports=edge_ports,
    )
