"""Which connections carried the experiment, and which loopback connection belongs to which wire connection.

A *path* is what one client's messages travel: client application, its sidecar (if
there is one), the wire, the server's sidecar, the server application. With
sidecars every application's peer is 127.0.0.1, so the pieces are joined by what the
proxies' threads did: a read on one side and the next write on the other, counted
by the probes; the partner with the highest count is the right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.evidence.values import Burst, Drop, KernelEvents, LoKey, Packet, Wire
from analysis.ledger.roles import Roles, roles_of
from ztprobe.events.kinds import Direction, Hook

__all__ = ("Path", "Topology", "topologies_of", "topology_of")

# Control traffic and handshakes stay below; most models are larger by orders of magnitude.
_MESSAGE_MIN_BYTES = 8 << 10
_MESSAGE_MIN_SHARE = 0.25


@dataclass(frozen=True)
class Path:
    """One wire connection between a client and the server, with its loopback partners."""

    client: str
    wire: Wire
    client_lo: LoKey | None
    server_lo: LoKey | None
    server: str = ""


@dataclass(frozen=True)
class Topology:
    """Who is who, by which ways they speak, and the events to look up; made once.

    With edge aggregators this is one level: the server with its edges, or an edge with its clients.
    """

    server: str
    ports: frozenset[int]  # of the server
    clients: tuple[str, ...]
    addresses: dict[str, str]  # pod -> address
    paths: list[Path]
    events: KernelEvents
    aggregators: frozenset[str] = frozenset()  # clients that serve others: their own time is no training

    def work_of(self, client: str) -> str:
        """The component that a client's own time belongs to."""
        return "server" if client in self.aggregators else "compute"

    def bursts(self, pod: str, hook: Hook, key: Wire | LoKey, direction: Direction) -> Sequence[Burst]:
        """A connection's bursts at a hook, control traffic among them."""
        return self.events.bursts.get((pod, hook, key), {}).get(direction, ())

    def messages(self, pod: str, hook: Hook, key: Wire | LoKey, direction: Direction) -> list[Burst]:
        """Bursts of a connection at a hook that are whole messages, not control traffic."""
        found = self.bursts(pod, hook, key, direction)
        largest_bytes = max((b.bytes for b in found), default=0)
        limit_bytes = max(_MESSAGE_MIN_BYTES, _MESSAGE_MIN_SHARE * largest_bytes)
        return [b for b in found if b.bytes >= limit_bytes]

    def packets(self, path: Path) -> Sequence[Packet]:
        """A path's set-up packets and first payloads, at the client's interface."""
        return self.events.packets.get((path.client, path.wire), ())

    def refused(self, sender: str, wire: Wire) -> list[Drop]:
        """What a full queue at a sender, or on the node behind it, dropped of a wire connection."""
        return [
            drop
            for place in (sender, "node")
            for drop in self.events.drops.get(place, ())
            if drop.reason == "QDISC_DROP"
            and drop.wire == wire
            and drop.seq
            and drop.source.address == self.addresses[sender]
        ]

    def opened_ns(self, lo: LoKey | None) -> int | None:
        """When a loopback connection was opened, by its first SYN."""
        packets = self.events.packets.get((lo.pod, lo), ()) if lo is not None else ()
        return next((p.ts_ns for p in packets if p.opens), None)


def topology_of(meta: Mapping[str, Any], events: KernelEvents) -> Topology:
    """The ways between the clients and the server.

    :param meta: run.json: pods with their addresses, and who serves whom.
    :raises ValueError: run.json does not say who serves whom.
    """
    roles = roles_of(meta)
    return _topology(meta, events, roles, roles.server, roles.ports, roles.clients)


def topologies_of(meta: Mapping[str, Any], events: KernelEvents) -> list[Topology]:
    """The server's level first, then each edge aggregator's, in the order of their names.

    :raises ValueError: run.json does not say who serves whom.
    """
    roles = roles_of(meta)
    levels = [(roles.server, roles.ports, roles.clients)]
    levels += [(edge, roles.edge_ports[edge], roles.edges[edge]) for edge in sorted(roles.edges)]
    return [_topology(meta, events, roles, *level) for level in levels]


def _topology(
    meta: Mapping[str, Any],
    events: KernelEvents,
    roles: Roles,
    server: str,
    ports: frozenset[int],
    clients: tuple[str, ...],
) -> Topology:
    addresses = {p["name"]: p["address"] for p in meta["pods"]}
    owner = {addresses[name]: name for name in clients}
    address = addresses[server]

    def serves(wire: Wire) -> bool:
        ends = [end for end in (wire.one, wire.other) if end.address == address and end.port in ports]
        return bool(ends) and wire.peer_of(address).address in owner

    def partner(pod: str, wire: Wire) -> LoKey | None:
        # Behind a sidecar, a wire without its loopback connection has lost it, and is no direct way.
        lost = LoKey(pod, 0, 0) if pod in roles.behind_sidecar else None
        return events.partners.get((pod, wire), lost)

    found = [(owner[w.peer_of(address).address], w) for w in events.wires if serves(w)]
    found.sort(key=lambda way: (clients.index(way[0]), way[1]))
    return Topology(
        server=server,
        ports=ports,
        clients=clients,
        addresses=addresses,
        paths=[Path(c, w, partner(c, w), partner(server, w), server) for c, w in found],
        events=events,
        aggregators=frozenset(roles.edges).intersection(clients),
    )
