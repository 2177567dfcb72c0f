"""Which connections carried the experiment, and which loopback connection belongs to which wire connection.

A *path* is what one client's messages travel: client application, its sidecar (if
there is one), the wire, the server's sidecar, the server application. With
sidecars every application's peer is 127.0.0.1, so the pieces are joined by what the
proxies' threads did: a read on one side and the next write on the other, counted
by the probes; the partner with the highest count is the right one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.evidence.values import Burst, Drop, KernelEvents, LoKey, Packet, Wire
from analysis.ledger.roles import Roles, roles_of
from ztprobe.events.kinds import Direction, Hook

__all__ = ("FRAMES_BYTES", "Path", "Topology", "topologies_of", "topology_of")

# Control traffic and handshakes stay below; most models are larger by orders of magnitude.
_MESSAGE_MIN_BYTES = 8 << 10
_MESSAGE_MIN_SHARE = 0.25
# What HTTP/2 answers bytes with: two window updates and a ping (43 bytes) in two records of TLS (44). A
# message of gRPC has more: its own frame and prefix, and whatever it says.
FRAMES_BYTES = 96


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
        long_ones = [b for b in found if b.bytes >= limit_bytes]
        turns = self.events.turns.get((pod, hook, key))
        return [_without_answers(b, turns) for b in long_ones] if turns else long_ones

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


def _without_answers(burst: Burst, turns: Mapping[Direction, Sequence[Burst]]) -> Burst:
    """A long message without the short ones behind it, each of which followed something short the other way.

    A burst goes on until there is something long in the other direction.
    """
    other = Direction.RX if burst.direction is Direction.TX else Direction.TX
    pieces = [t for t in _during(burst, turns.get(burst.direction, ())) if t.bytes >= FRAMES_BYTES]
    whole = next((i for i in reversed(range(len(pieces))) if pieces[i].bytes >= _MESSAGE_MIN_BYTES), None)
    if whole is None:
        return burst
    said = [t for t in _during(burst, turns.get(other, ())) if t.bytes >= FRAMES_BYTES]
    answered_ns = min((t.last_ns for t in said if t.last_ns >= pieces[whole].last_ns), default=burst.last_ns)
    end = next(t for t in reversed(pieces) if t.last_ns <= answered_ns or t is pieces[whole])
    if end is pieces[-1]:
        return burst
    length = (end.end_seq - burst.first_seq) & 0xFFFFFFFF
    return burst._replace(last_ns=end.last_ns, end_seq=end.end_seq, bytes=length, tail_ns=0, tail_end_seq=0)


def _during(burst: Burst, turns: Sequence[Burst]) -> Sequence[Burst]:
    first, last = (
        bisect_left(turns, at_ns, key=lambda t: t.last_ns) for at_ns in (burst.first_ns, burst.last_ns)
    )
    return turns[first : last + 1]


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


def _opened_before(sidecars_ns: int, pod: str, wire: Wire, events: KernelEvents) -> bool:
    """Whether a connection is older than the sidecars, which came while the run went on."""
    opened_ns = next((p.ts_ns for p in events.packets.get((pod, wire), ()) if p.opens), 0)
    return opened_ns < sidecars_ns


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
        proxied = pod in roles.behind_sidecar and not _opened_before(roles.sidecars_ns, pod, wire, events)
        return events.partners.get((pod, wire), LoKey(pod, 0, 0) if proxied else None)

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
