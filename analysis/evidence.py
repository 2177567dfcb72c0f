"""The one place that reads a run's events: tables in, values of the analysis's own types out.

What the analysis asks for is grouped here once (a long run has thousands of messages, each of which looks
for its pauses and repairs), by *connection*: both ends of a wire connection have one key, `Wire`, and so
have both sockets of a loopback connection, `LoKey`. Addresses and ports come again in time; a key holds, as
``number``, how many connections with the same ones began before. Two rows of the connection table are the
same connection if their SYN had the same sequence number; a row without a SYN (older than the trace, or the
SYN was lost) belongs to the last that had begun by then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.ledger.intervals import Interval, union
from ztprobe.events.kinds import Direction, Hook

__all__ = (
    "ACK",
    "FIN",
    "RST",
    "SYN",
    "TIMES",
    "Burst",
    "DnsMessage",
    "Drop",
    "DuplicateAck",
    "Endpoint",
    "KernelEvents",
    "LoKey",
    "Packet",
    "Pause",
    "Retransmission",
    "Wire",
    "read_events",
    "wire_between",
)

# Table -> the column that says when; all that a run counts as events.
TIMES = {
    "bursts": "last_ns",
    **dict.fromkeys(
        (
            *("packets", "dns", "connections", "drops", "state_changes", "retransmissions"),
            *("duplicate_acks", "gaps", "blocked_readers", "cpu_waits"),
        ),
        "ts_ns",
    ),
}
_LOOPBACK = "127."
FIN, SYN, RST, ACK = 1, 2, 4, 16  # of the TCP header's flags


class Endpoint(NamedTuple):
    """One end of a connection or a datagram."""

    address: str
    port: int


class Wire(NamedTuple):
    """A connection between two pods, as both of them name it: ``one`` < ``other``."""

    one: Endpoint
    other: Endpoint
    number: int = 0

    def peer_of(self, address: str) -> Endpoint:
        """The end that does not have this address."""
        return self.other if self.one.address == address else self.one


def wire_between(source: Endpoint, target: Endpoint, number: int = 0) -> Wire:
    """A connection's key, whichever end is named first."""
    return Wire(min(source, target), max(source, target), number)


class LoKey(NamedTuple):
    """A connection on a pod's loopback."""

    pod: str
    low_port: int
    high_port: int
    number: int = 0


Key = Wire | LoKey


class Burst(NamedTuple):
    """A run of payload in one direction at one hook; see docs/events.md."""

    pod: str
    hook: Hook
    direction: Direction
    first_ns: int
    last_ns: int
    tail_ns: int
    cwnd_ns: int
    rwnd_ns: int
    queue_ns: int
    http2_ns: int
    starved_ns: int
    first_seq: int
    end_seq: int
    tail_end_seq: int
    bytes: int
    packets: int
    late_packets: int


class Packet(NamedTuple):
    """A packet of a connection's set-up or end, or one of its first payloads."""

    pod: str
    ts_ns: int
    kind: str  # setup | payload
    direction: Direction
    tcp_flags: int
    seq: int
    payload_bytes: int
    tls_records: int
    tls_record0: int
    tls_record1: int
    tls_record2: int
    tls_record3: int
    tls_record4: int
    tls_record5: int
    data: bytes

    @property
    def opens(self) -> bool:
        """Whether it is set up by it: a SYN, or the answer to one."""
        return self.kind == "setup" and bool(self.tcp_flags & SYN)

    @property
    def tls_headers(self) -> list[tuple[int, int]]:
        """(type, length) of the first TLS records in it."""
        headers = (getattr(self, f"tls_record{i}") for i in range(min(self.tls_records, 6)))
        return [(header >> 24, header & 0xFFFF) for header in headers]


class DnsMessage(NamedTuple):
    """A question or an answer at a pod's interface."""

    pod: str
    ts_ns: int
    direction: Direction
    local_port: int
    remote: str
    data: bytes


class Drop(NamedTuple):
    """A packet that the kernel dropped in a pod's (or the node's) namespace."""

    pod: str
    ts_ns: int
    reason: str
    protocol: str
    source: Endpoint
    target: Endpoint
    tcp_flags: int
    seq: int
    payload_bytes: int
    wire: Wire | None  # the connection it belonged to, if that is known


class Retransmission(NamedTuple):
    """Bytes that TCP sent again."""

    ts_ns: int
    first_sent_ns: int
    later_sent_ns: int
    seq: int
    bytes: int
    tcp_state: str
    rtt_excess_us: int


class DuplicateAck(NamedTuple):
    """Bytes that a receiver said it got twice."""

    ts_ns: int
    seq: int
    bytes: int


class Pause(NamedTuple):
    """A gap, or a reader that did not read."""

    since_ns: int
    ts_ns: int
    hook: Hook
    direction: Direction


Row = TypeVar("Row")
ByPod = dict[tuple[str, Key], list[Row]]


@dataclass
class KernelEvents:
    """A run's events, ready to be looked up; lists are in the order of time."""

    # (pod, hook, connection) -> direction -> bursts
    bursts: dict[tuple[str, Hook, Key], dict[Direction, list[Burst]]] = field(default_factory=dict)
    packets: ByPod[Packet] = field(default_factory=dict)
    dns: list[DnsMessage] = field(default_factory=list)
    drops: dict[str, list[Drop]] = field(default_factory=dict)  # by pod; "node" among them
    retransmissions: ByPod[Retransmission] = field(default_factory=dict)
    duplicate_acks: ByPod[DuplicateAck] = field(default_factory=dict)
    gaps: ByPod[Pause] = field(default_factory=dict)
    blocked_readers: ByPod[Pause] = field(default_factory=dict)
    # "pod/container" -> of each of its threads, the disjoint stretches of waiting for a CPU
    cpu_waits: dict[str, list[list[Interval]]] = field(default_factory=dict)
    # (pod, wire connection) -> loopback connection that the same proxy threads served most often
    partners: dict[tuple[str, Wire], LoKey] = field(default_factory=dict)
    times_ns: NDArray[np.int64] = field(
        default_factory=lambda: np.empty(0, np.int64)
    )  # sorted, of all events
    reach_ns: int = 0  # the longest time that one event speaks of

    def count_between(self, start_ns: int, end_ns: int) -> int:
        """Events in [start, end)."""
        first, last = np.searchsorted(self.times_ns, (start_ns, end_ns))
        return int(last - first)

    @property
    def wires(self) -> set[Wire]:
        """Every connection between two pods of which a packet or a burst was seen."""
        keys: Iterable[Key] = (key for _, key in self.packets)
        return {key for key in (*keys, *(key for _, _, key in self.bursts)) if isinstance(key, Wire)}


class _Connections:
    """The connection table: identity -> key, and who had addresses and ports at a moment."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.key_of: dict[int, Key] = {}
        self._begun: dict[tuple[Endpoint, Endpoint], list[tuple[int, Wire]]] = defaultdict(list)
        alike: dict[Key, list[Any]] = defaultdict(list)
        for row in table.itertuples(index=False):
            alike[_alike(row)].append(row)
        for first, rows in alike.items():
            for begun_ns, number, row in _numbered(rows):
                key = first._replace(number=number)
                self.key_of[row.connection] = key
                if isinstance(key, Wire):
                    self._begun[key.one, key.other].append((begun_ns, key))
        for begun in self._begun.values():
            begun.sort()

    def wire_at(self, source: Endpoint, target: Endpoint, when_ns: int) -> Wire | None:
        """The connection between two ends that had begun last by then, or else the first that did."""
        begun = self._begun.get(wire_between(source, target)[:2])
        if not begun:
            return None
        return begun[max(0, bisect_right(begun, when_ns, key=lambda entry: entry[0]) - 1)][1]


def _alike(row: Any) -> Key:
    """The first connection's key of those that have a row's addresses and ports."""
    if row.local.startswith(_LOOPBACK):
        low_port, high_port = sorted((row.local_port, row.remote_port))
        return LoKey(row.pod, low_port, high_port)
    return wire_between(Endpoint(row.local, row.local_port), Endpoint(row.remote, row.remote_port))


def _numbered(rows: Sequence[Any]) -> Iterator[tuple[int, int, Any]]:
    """(when its connection began, that connection's number, row), of rows with one pair of ends."""
    begun: dict[int, int] = {}  # first sequence number -> when
    for row in rows:
        if row.opened_ns:
            begun[row.first_seq] = min(begun.get(row.first_seq, row.opened_ns), row.opened_ns)
    starts = sorted(begun.values())
    # What was there before the first SYN is a connection of its own.
    older = [row for row in rows if not row.opened_ns and bisect_right(starts, row.ts_ns) == 0]
    starts = [min(row.ts_ns for row in older), *starts] if older else starts
    for row in rows:
        number = bisect_right(starts, begun[row.first_seq] if row.opened_ns else row.ts_ns) - 1
        yield starts[number], number, row


def _rows(table: pd.DataFrame, kind: Callable[..., Row], **others: Sequence[Any]) -> Iterator[Row]:
    """A table's rows as values of one type; ``others`` are columns that are not taken as they stand."""
    # What itertuples does, several times as fast: a column at a time.
    columns = (others[name] if name in others else table[name].tolist() for name in kind._fields)  # type: ignore[attr-defined]
    return map(kind._make, zip(*columns, strict=True))  # type: ignore[attr-defined]


def _places(table: pd.DataFrame) -> dict[str, list[Any]]:
    """The columns that hold an enum's name."""
    kinds: dict[str, type[Hook] | type[Direction]] = {"hook": Hook, "direction": Direction}
    return {name: list(map(kind, table[name].tolist())) for name, kind in kinds.items() if name in table}


def _by_connection(table: pd.DataFrame, kind: Callable[..., Row], connections: _Connections) -> ByPod[Row]:
    """Rows by pod and connection; those of a connection that is not known are nobody's evidence."""
    grouped: ByPod[Row] = defaultdict(list)
    places = _places(table)
    owners = zip(table["pod"].tolist(), table["connection"].tolist(), strict=True)
    for (pod, connection), row in zip(owners, _rows(table, kind, **places), strict=True):
        if (key := connections.key_of.get(connection)) is not None:
            grouped[pod, key].append(row)
    return dict(grouped)


def _bursts(
    table: pd.DataFrame, connections: _Connections
) -> dict[tuple[str, Hook, Key], dict[Direction, list[Burst]]]:
    grouped: dict[tuple[str, Hook, Key], dict[Direction, list[Burst]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for (pod, key), bursts in _by_connection(table, Burst, connections).items():
        for burst in bursts:
            grouped[pod, burst.hook, key][burst.direction].append(burst)
    return {place: dict(found) for place, found in grouped.items()}


def _drops(table: pd.DataFrame, connections: _Connections) -> dict[str, list[Drop]]:
    sources, targets = (
        list(map(Endpoint, table[end].tolist(), table[f"{end}_port"].tolist()))
        for end in ("source", "target")
    )
    wires: list[Wire | None] = []
    columns = (table[name].tolist() for name in ("connection", "protocol", "ts_ns"))
    for source, target, connection, protocol, ts_ns in zip(sources, targets, *columns, strict=True):
        key = connections.key_of.get(connection)
        if key is None and protocol == "tcp":
            # Of another namespace than the pods': on its way between two ends that both have one.
            key = connections.wire_at(source, target, ts_ns)
        wires.append(key if isinstance(key, Wire) else None)
    grouped: dict[str, list[Drop]] = defaultdict(list)
    for drop in _rows(table, Drop, source=sources, target=targets, wire=wires):
        grouped[drop.pod].append(drop)
    return dict(grouped)


def _cpu_waits(table: pd.DataFrame) -> dict[str, list[list[Interval]]]:
    columns = (table[name].tolist() for name in ("process", "tid", "since_ns", "ts_ns"))
    threads: dict[tuple[str, int], list[Interval]] = defaultdict(list)
    for process, tid, since_ns, until_ns in zip(*columns, strict=True):
        threads[process, tid].append((since_ns, until_ns))
    grouped: dict[str, list[list[Interval]]] = defaultdict(list)
    for (process, _), waited in threads.items():
        grouped[process].append(union(waited))
    return dict(grouped)


def _partners(table: pd.DataFrame, connections: _Connections) -> dict[tuple[str, Wire], LoKey]:
    votes: dict[tuple[str, Wire], dict[LoKey, int]] = defaultdict(lambda: defaultdict(int))
    columns = (table[name].tolist() for name in ("pod", "from_connection", "to_connection", "count"))
    for pod, source, target, count in zip(*columns, strict=True):
        keys = (connections.key_of.get(source), connections.key_of.get(target))
        lo = [key for key in keys if isinstance(key, LoKey)]
        wire = [key for key in keys if isinstance(key, Wire)]
        if len(lo) == len(wire) == 1:
            votes[pod, wire[0]][lo[0]] += count
    return {place: max(sorted(counts), key=lambda key: counts[key]) for place, counts in votes.items()}


def _reach_ns(tables: Mapping[str, pd.DataFrame]) -> int:
    """A pause or a repair is told when it ends; the longest of them."""
    longest_ns = 0
    for name, since in (("gaps", "since_ns"), ("retransmissions", "first_sent_ns")):
        told = tables[name][tables[name][since] > 0]
        longest_ns = max(longest_ns, int((told["ts_ns"] - told[since]).max()) if len(told) else 0)
    return longest_ns


def read_events(tables: Mapping[str, pd.DataFrame]) -> KernelEvents:
    """Every event of a run whose tables have been checked (`analysis.run_checks`)."""
    connections = _Connections(tables["connections"])
    dns = tables["dns"]
    return KernelEvents(
        bursts=_bursts(tables["bursts"], connections),
        packets=_by_connection(tables["packets"], Packet, connections),
        dns=list(_rows(dns, DnsMessage, **_places(dns))),
        drops=_drops(tables["drops"], connections),
        retransmissions=_by_connection(tables["retransmissions"], Retransmission, connections),
        duplicate_acks=_by_connection(tables["duplicate_acks"], DuplicateAck, connections),
        gaps=_by_connection(tables["gaps"], Pause, connections),
        blocked_readers=_by_connection(tables["blocked_readers"], Pause, connections),
        cpu_waits=_cpu_waits(tables["cpu_waits"]),
        partners=_partners(tables["pairs"], connections),
        times_ns=np.sort(np.concatenate([tables[name][column].to_numpy() for name, column in TIMES.items()])),
        reach_ns=_reach_ns(tables),
    )
