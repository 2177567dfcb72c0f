"""The kinds of evidence, and what is asked of them: values without a table behind them.

Everything is grouped once (a long run has thousands of messages, each of which looks for its pauses and
repairs), by *connection*: both ends of a wire connection have one key, `Wire`, and so have both sockets of a
loopback connection, `LoKey`. Addresses and ports come again in time; a key holds, as ``number``, how many
connections with the same ones began before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from analysis.intervals import Interval
from ztprobe.events.kinds import Direction, Hook

__all__ = (
    "ACK",
    "FIN",
    "RST",
    "SYN",
    "Burst",
    "DnsMessage",
    "Drop",
    "DuplicateAck",
    "Endpoint",
    "KernelEvents",
    "Key",
    "LoKey",
    "Packet",
    "Pause",
    "Retransmission",
    "Wire",
    "wire_between",
)

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
    # Likewise, where a run was traced turn by turn: what was said, short or long
    turns: dict[tuple[str, Hook, Key], dict[Direction, list[Burst]]] = field(default_factory=dict)
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
