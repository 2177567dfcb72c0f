"""Messages placed at every hop they passed: the first and the last byte of each, from kernel events alone.

One message (a model going down, an update coming up) is a burst at up to six hooks.
The wire's two ends are matched by sequence number; a hop on loopback is the last one
that began before the wire's (sending side) or the first that began after it
(receiving side); what the application read is matched the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.evidence.values import Burst, LoKey
from analysis.ledger.connections import Path, Topology
from ztprobe.events.kinds import Direction, Hook

__all__ = ("HopMessage", "messages_of", "overlaps")

# Two hooks on one machine read one clock; this covers the order in which they run.
_ORDER_SLACK_NS = 200_000


@dataclass(frozen=True, kw_only=True)
class HopMessage:
    """One message's edges in CLOCK_MONOTONIC nanoseconds; None where no event says so.

    ``sent``/``arrived`` are the wire (eth0 of sender and receiver), ``handed`` is the sending
    application's loopback (with a sidecar), ``delivered`` the receiving side's, and ``read``
    is the receiving application's own read.
    """

    path: Path
    down: bool
    handed: Burst | None
    sent: Burst
    arrived: Burst | None
    delivered: Burst | None
    read: Burst | None

    @property
    def first_handed_ns(self) -> int:
        """The sending application's first byte."""
        if self.handed is None:
            return self.sent.first_ns
        # On a new connection the sidecar's wire begins with frames that went ahead of the message.
        return min(self.handed.first_ns, self.sent.first_ns)

    @property
    def last_arrived_ns(self) -> int | None:
        """The last byte off the wire."""
        return _end_ns(self.arrived, self.sent.end_seq) if self.arrived is not None else None

    @property
    def last_delivered_ns(self) -> int | None:
        """The last byte on the receiving side's loopback (without a sidecar: off the wire)."""
        if self.path_has_receiving_sidecar:
            return self.delivered.last_ns if self.delivered is not None else None
        return self.last_arrived_ns

    @property
    def last_read_ns(self) -> int | None:
        """The receiving application had read it all."""
        if self.read is None:
            return None
        before = self.delivered if self.delivered is not None else self.sent
        return _end_ns(self.read, before.end_seq)

    @property
    def path_has_sending_sidecar(self) -> bool:
        """Whether a proxy stands behind the sending application."""
        return (self.path.server_lo if self.down else self.path.client_lo) is not None

    @property
    def beginning_is_known(self) -> bool:
        """Whether the sending application's first byte was seen, not only its sidecar's."""
        return self.handed is not None or not self.path_has_sending_sidecar

    @property
    def path_has_receiving_sidecar(self) -> bool:
        """Whether a proxy stands before the receiving application."""
        return (self.path.client_lo if self.down else self.path.server_lo) is not None

    @property
    def late_ns(self) -> int:
        """By how much longer the last byte was on its way than the first."""
        if self.arrived is None or self.last_arrived_ns is None:
            return 0
        arriving_ns = self.last_arrived_ns - self.arrived.first_ns
        return max(0, arriving_ns - (self.sent.last_ns - self.sent.first_ns))

    @property
    def one_way_ns(self) -> int:
        """The first segment's one-way delay."""
        return self.arrived.first_ns - self.sent.first_ns if self.arrived is not None else 0


def _end_ns(burst: Burst, end_seq: int) -> int:
    """When a burst reached ``end_seq``: with its last large payload, or with the small one behind it."""
    missing = (end_seq - burst.end_seq) & 0xFFFFFFFF
    if 0 < missing < 1 << 31 and burst.tail_end_seq == end_seq:
        return max(burst.last_ns, burst.tail_ns)
    return burst.last_ns


def overlaps(sent: Burst, arrived: Burst) -> bool:
    """Whether two bursts share sequence numbers (32 bits, wrapping)."""
    span = (sent.end_seq - sent.first_seq) & 0xFFFFFFFF
    inside = (arrived.first_seq - sent.first_seq) & 0xFFFFFFFF
    before = (sent.first_seq - arrived.first_seq) & 0xFFFFFFFF
    return bool(inside < span or before < (arrived.end_seq - arrived.first_seq) & 0xFFFFFFFF)


def _overlapping(reads: Sequence[Burst], before: Burst) -> Burst | None:
    """The reads of the same bytes: an application's sequence numbers are its connection's."""
    return next((read for read in reads if overlaps(before, read)), None)


def _last_before(bursts: Sequence[Burst], first_ns: int, since_ns: int) -> Burst | None:
    """... but not from before the message that went ahead of this one: that one's is another's."""
    found = [b for b in bursts if since_ns < b.first_ns <= first_ns + _ORDER_SLACK_NS]
    return found[-1] if found else None


def _first_after(bursts: Sequence[Burst], first_ns: int, until_ns: int) -> Burst | None:
    """... but not from after the message that comes next."""
    return next((b for b in bursts if first_ns - _ORDER_SLACK_NS <= b.first_ns < until_ns), None)


def _with_beginning(arrival: Burst, arriving: Sequence[Burst], sent: Burst) -> Burst:
    """The arrival from the message's first byte on: what came before a long pause is a burst of its own."""
    first_ns = min(b.first_ns for b in arriving if b.first_ns >= sent.first_ns and overlaps(sent, b))
    return arrival._replace(first_ns=first_ns) if first_ns < arrival.first_ns else arrival


def _application_reads(topology: Topology, path: Path, pod: str) -> list[Burst]:
    """Bulk reads by the application of ``pod``, on its loopback connection or on the wire."""
    lo = path.server_lo if pod == topology.server else path.client_lo
    return topology.messages(pod, Hook.SOCK, lo if lo is not None else path.wire, Direction.RX)


def _on_loopback(topology: Topology, lo: LoKey | None, direction: Direction) -> list[Burst]:
    return topology.messages(lo.pod, Hook.LO, lo, direction) if lo is not None else []


def messages_of(topology: Topology, path: Path, down: bool) -> list[HopMessage]:
    """Every message that went over a path in one direction, in time order."""
    server = topology.server
    sender, receiver = (server, path.client) if down else (path.client, server)
    sender_lo, receiver_lo = (path.server_lo, path.client_lo) if down else (path.client_lo, path.server_lo)
    # The proxy listens on the client's loopback (lower port: TX goes to the application); the
    # application listens on the server's (TX comes from it). Either way a model down is TX.
    lo_direction = Direction.TX if down else Direction.RX
    sent = topology.messages(sender, Hook.ETH, path.wire, Direction.TX)
    arrived = topology.messages(receiver, Hook.ETH, path.wire, Direction.RX)
    arriving = topology.bursts(receiver, Hook.ETH, path.wire, Direction.RX)
    handed = _on_loopback(topology, sender_lo, lo_direction)
    delivered = _on_loopback(topology, receiver_lo, lo_direction)
    reads = _application_reads(topology, path, receiver)
    # Messages of both directions, at both ends: what belongs to one lies between its neighbours.
    answers = [
        burst
        for pod, direction in ((sender, Direction.RX), (receiver, Direction.TX))
        for burst in topology.messages(pod, Hook.ETH, path.wire, direction)
    ]
    found = []
    for burst in sent:
        arrival = next((a for a in arrived if overlaps(burst, a) and a.first_ns >= burst.first_ns), None)
        edges = [b.first_ns for b in (*sent, *arrived, *answers) if b is not burst and b is not arrival]
        since_ns = max((edge for edge in edges if edge < burst.first_ns), default=-1)
        until_ns = min((edge for edge in edges if edge > burst.first_ns), default=1 << 62)
        if arrival is not None:
            arrival = _with_beginning(arrival, arriving, burst)
        delivery = _first_after(delivered, arrival.first_ns, until_ns) if arrival is not None else None
        before = delivery if delivery is not None else arrival if not receiver_lo else None
        found.append(
            HopMessage(
                path=path,
                down=down,
                handed=_last_before(handed, burst.first_ns, since_ns)
                or _first_after(handed, burst.first_ns, min(until_ns, burst.last_ns)),
                sent=burst,
                arrived=arrival,
                delivered=delivery,
                read=_overlapping(reads, before) if before is not None else None,
            )
        )
    return found
