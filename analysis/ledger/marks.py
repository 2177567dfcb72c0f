"""What happened on a client's way through a round, as marks, which explain and cost nothing.

Sent again on the wire, dropped, connections opened, and the client's threads waiting for a CPU. Marks of one
kind that lie closer together than a drawing of the round could show are one, with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from analysis.evidence.values import ACK, KernelEvents
from analysis.intervals import union
from analysis.ledger.connections import Topology
from analysis.ledger.model import MARKS, Mark
from ztprobe.events.kinds import Direction

__all__ = ("marks_of", "opened_at_ns")

_PLACES = 50  # in which a round is divided: what is closer is one mark
_NODE = "node"


def opened_at_ns(topologies: Iterable[Topology], client: str, start_ns: int, end_ns: int) -> list[int]:
    """When a client's first segments (SYN) left within [start, end), those that were sent again too."""
    return [
        packet.ts_ns
        for topology in topologies
        for path in topology.paths
        if path.client == client
        for packet in topology.packets(path)
        if packet.opens
        and packet.direction == Direction.TX
        and not packet.tcp_flags & ACK
        and start_ns <= packet.ts_ns < end_ns
    ]


def marks_of(
    topologies: Sequence[Topology], events: KernelEvents, client: str, start_ns: int, end_ns: int
) -> tuple[Mark, ...]:
    """Every mark of a client within a round, by kind and in the order of time.

    :param topologies: one a level of aggregation; those connections are its own of which it is the client.
    """
    wires = {
        (path.wire, topology.server)
        for topology in topologies
        for path in topology.paths
        if path.client == client
    }
    opened = [(at_ns, at_ns) for at_ns in opened_at_ns(topologies, client, start_ns, end_ns)]
    found: dict[str, Iterable[tuple[int, int]]] = {
        "retransmission": (
            (again.ts_ns, again.ts_ns)
            for wire, server in wires
            for pod in (server, client)
            for again in events.retransmissions.get((pod, wire), ())
        ),
        "drop": ((ts_ns, ts_ns) for ts_ns in _dropped(events, client, wires)),
        "handshake": opened,
        "cpu_wait": union(
            [
                wait
                for process, threads in events.cpu_waits.items()
                if process.partition("/")[0] == client
                for waits in threads
                for wait in waits
            ]
        ),
    }
    place_ns = max(1, (end_ns - start_ns) // _PLACES)
    return tuple(
        mark for kind in MARKS for mark in _merged(kind, _within(found[kind], start_ns, end_ns), place_ns)
    )


def _dropped(events: KernelEvents, client: str, wires: Iterable[tuple[object, str]]) -> Iterator[int]:
    pods = {client, _NODE} | {server for _, server in wires}
    own = {wire for wire, _ in wires}
    for pod in pods:
        for drop in events.drops.get(pod, ()):
            if pod == client or drop.wire in own:
                yield drop.ts_ns


def _within(spans: Iterable[tuple[int, int]], start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    return sorted(
        (max(since_ns, start_ns), min(until_ns, end_ns))
        for since_ns, until_ns in spans
        if since_ns < end_ns and until_ns >= start_ns
    )


def _merged(kind: str, spans: Sequence[tuple[int, int]], place_ns: int) -> Iterator[Mark]:
    current: Mark | None = None
    for since_ns, until_ns in spans:
        if current is not None and until_ns - current.start_ns < place_ns:
            current = current._replace(end_ns=max(current.end_ns, until_ns), times=current.times + 1)
            continue
        if current is not None:
            yield current
        current = Mark(kind, since_ns, until_ns, 1)
    if current is not None:
        yield current
