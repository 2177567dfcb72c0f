"""What really happened, read from a packet capture: the ledger's terms, another observer.

Every function takes one pod's packets (or two pods') and a stretch of time, and returns
intervals in CLOCK_MONOTONIC nanoseconds; ``ports`` are those at which the server is reached.
Nothing here looks at the probes' events.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property

from ztprobe.validate.observe.capture import ACK, SYN, CapturedPacket

__all__ = (
    "BULK_BYTES",
    "Interval",
    "Link",
    "between",
    "data_blocks",
    "dns_blocks",
    "dns_waits",
    "handshakes",
    "holes",
    "policy_blocks",
    "tls_handshakes",
    "window_scale",
)

Interval = tuple[int, int]
BULK_BYTES = 256
_HANDSHAKE_RECORD = 22
_LONG_NS = 60_000_000_000
# A sender that may go on does so within this.
_PROMPT_NS = 1_000_000
# A packet may wait this long on its way besides the path's delay.
_QUEUED_NS = 50_000_000
_SEGMENT_BYTES = 1448


def between(packets: Sequence[CapturedPacket], start_ns: int, end_ns: int) -> list[CapturedPacket]:
    """What passed in [start, end)."""
    return [p for p in packets if start_ns <= p.ts_ns < end_ns]


def _is_syn(packet: CapturedPacket, ports: Collection[int]) -> bool:
    return not packet.udp and packet.flags & (SYN | ACK) == SYN and packet.dport in ports


def handshakes(client: Sequence[CapturedPacket], ports: Collection[int]) -> list[Interval]:
    """First SYN to SYN-ACK of every connection that a client opened."""
    opened: dict[int, int] = {}
    found = []
    for packet in client:
        if _is_syn(packet, ports):
            opened.setdefault(packet.sport, packet.ts_ns)
        elif packet.flags & (SYN | ACK) == SYN | ACK and packet.dport in opened:
            found.append((opened.pop(packet.dport), packet.ts_ns))
    return found


def tls_handshakes(client: Sequence[CapturedPacket], ports: Collection[int]) -> list[Interval]:
    """ClientHello to the client's next flight, of every connection that begins inside ``client``."""
    streams: dict[int, list[CapturedPacket]] = defaultdict(list)
    opened: set[int] = set()
    for packet in client:
        if _is_syn(packet, ports):
            opened.add(packet.sport)
        port = packet.sport if packet.dport in ports else packet.dport
        if not packet.udp and packet.payload_bytes and port in opened:
            streams[port].append(packet)
    found = []
    for port, packets in streams.items():
        hello = packets[0]
        if hello.sport != port or not hello.head or hello.head[0] != _HANDSHAKE_RECORD:
            continue
        answer = next((p for p in packets if p.dport == port and p.head[:1] == b"\x16"), None)
        after = [p for p in packets if answer is not None and p.sport == port and p.ts_ns > answer.ts_ns]
        if after:
            found.append((hello.ts_ns, after[0].ts_ns))
    return found


def dns_waits(client: Sequence[CapturedPacket]) -> list[Interval]:
    """Question to answer, for every question that was answered."""
    asked: dict[tuple[int, bytes], int] = {}
    found = []
    for packet in client:
        if not packet.udp or len(packet.head) < 12:
            continue
        if packet.dport == 53:
            asked.setdefault((packet.sport, packet.head[:2]), packet.ts_ns)
        elif (key := (packet.dport, packet.head[:2])) in asked:
            found.append((asked.pop(key), packet.ts_ns))
    return found


def policy_blocks(
    client: Sequence[CapturedPacket], server: Sequence[CapturedPacket], ports: Collection[int]
) -> list[Interval]:
    """First SYN that did not arrive to the sending of the first that did, per client port."""
    arrived: dict[tuple[str, int], list[int]] = defaultdict(list)
    for packet in server:
        if _is_syn(packet, ports):
            arrived[packet.source, packet.sport].append(packet.ts_ns)
    sent: dict[tuple[str, int], list[int]] = defaultdict(list)
    for packet in client:
        if _is_syn(packet, ports):
            sent[packet.source, packet.sport].append(packet.ts_ns)
    found = []
    for flow, times in sent.items():
        through = arrived.get(flow)
        if through and len(times) > 1:
            passing = [t for t in times if t <= through[0]]
            if passing and passing[-1] > times[0]:
                found.append((times[0], passing[-1]))
    return found


def dns_blocks(client: Sequence[CapturedPacket]) -> list[Interval]:
    """First question that was never answered to the sending of the first one after it that was."""
    questions = [p for p in client if p.udp and p.dport == 53 and len(p.head) >= 12]
    answers = [p for p in client if p.udp and p.sport == 53 and len(p.head) >= 12]

    def answered(asked: CapturedPacket) -> bool:
        again = next(
            (q.ts_ns for q in questions if _same(q, asked) and q.ts_ns > asked.ts_ns), asked.ts_ns + _LONG_NS
        )
        return any(
            a.dport == asked.sport and a.head[:2] == asked.head[:2] and asked.ts_ns <= a.ts_ns < again
            for a in answers
        )

    blocked = [q.ts_ns for q in questions if not answered(q)]
    through = [q.ts_ns for q in questions if answered(q)]
    found: list[Interval] = []
    for start_ns in blocked:
        end_ns = next((t for t in through if t > start_ns), None)
        if end_ns is not None and (not found or start_ns >= found[-1][1]):
            found.append((start_ns, end_ns))
    return found


def _same(one: CapturedPacket, other: CapturedPacket) -> bool:
    return one.sport == other.sport and one.head[:2] == other.head[:2]


class Link:
    """One message between two pods as both ends' captures saw it: data segments in one direction.

    :param sender: the sending pod's packets; ``receiver`` the other's, both cut to the message's round.
    :param window_scale: of the receiver's advertised windows; None: unknown.
    """

    def __init__(
        self,
        sender: Sequence[CapturedPacket],
        receiver: Sequence[CapturedPacket],
        source: str,
        target: str,
        window_scale: int | None = None,
    ) -> None:
        self._scale = window_scale

        def data(packets: Sequence[CapturedPacket]) -> list[CapturedPacket]:
            return [p for p in packets if not p.udp and p.source == source and p.target == target]

        self._all = data(sender)
        self.sent = [p for p in self._all if p.payload_bytes >= BULK_BYTES]
        self.arrived = [p for p in data(receiver) if p.payload_bytes >= BULK_BYTES]
        self.acks = [
            p for p in sender if not p.udp and p.source == target and p.target == source and p.flags & ACK
        ]

    @property
    def first_delay(self) -> Interval | None:
        """The first data segment, from interface to interface."""
        if not self.sent:
            return None
        first = self.sent[0]
        for packet in self.arrived:
            if (first.seq - packet.seq) & 0xFFFFFFFF < max(1, packet.payload_bytes):
                return first.ts_ns, packet.ts_ns
        return None

    @property
    def transmission(self) -> Interval | None:
        """First to last byte at the receiver (the last that brought something new)."""
        if not self.arrived:
            return None
        highest = self.arrived[0].seq
        last_ns = self.arrived[0].ts_ns
        for packet in self.arrived:
            if _ahead(packet.end_seq, highest):
                highest, last_ns = packet.end_seq, packet.ts_ns
        return self.arrived[0].ts_ns, last_ns

    @property
    def progress(self) -> list[tuple[int, int]]:
        """(time, payload bytes sent until then, control frames included), where nothing is sent twice."""
        sums = itertools.accumulate(p.payload_bytes for p in self._all)
        return [(p.ts_ns, so_far) for p, so_far in zip(self._all, sums, strict=True)]

    def silence(self, at_ns: int) -> Interval | None:
        """The pause of the sender that ``at_ns`` lies in: between two packets that carry something new."""
        fresh = [p.ts_ns for p in self._fresh]
        at = bisect_right(fresh, at_ns)
        return (fresh[at - 1], fresh[at]) if 0 < at < len(fresh) else None

    @property
    def closed_windows(self) -> list[Interval]:
        """Pauses of the sender that began when the peer's window had no room for another segment."""
        found = []
        for packet, following in itertools.pairwise(self._fresh):
            room_end = self._room_end(packet.ts_ns)
            if room_end is not None and _ahead(packet.end_seq + _SEGMENT_BYTES & 0xFFFFFFFF, room_end):
                found.append((packet.ts_ns, following.ts_ns))
        return found

    @cached_property
    def _fresh(self) -> list[CapturedPacket]:
        """What was sent for the first time."""
        fresh: list[CapturedPacket] = []
        for packet in self.sent:
            if not fresh or _ahead(packet.end_seq, fresh[-1].end_seq):
                fresh.append(packet)
        return fresh

    @property
    def ack_clocked(self) -> list[Interval]:
        """Pauses that an acknowledgement ended although the peer's window had room: the congestion window's.

        A sender that is held back by its congestion window sends as soon as the window moves; one
        that has nothing to send, or waits for a qdisc, does so at another time. What its timer sends when
        nothing has been acknowledged for long (a probe, a retransmission) opens no window: the wait goes on.
        """
        events = sorted(
            [(p.ts_ns, 0, p) for p in self.acks] + [(p.ts_ns, 1, p) for p in self.sent],
            key=lambda event: event[:2],
        )
        first = self.sent[0] if self.sent else None
        answered_ns = [p.ts_ns for p in self.acks if first is not None and _ahead(p.ack, first.seq)]
        # Half a round trip: the timer may go by an older, shorter one.
        long_ns = (answered_ns[0] - first.ts_ns) // 2 if first is not None and answered_ns else 0
        unacknowledged = room_end = highest = previous_ns = advanced_ns = None
        found = []
        for ts_ns, is_data, packet in events:
            if not is_data:
                if unacknowledged is None or _ahead(packet.ack, unacknowledged):
                    unacknowledged, advanced_ns = packet.ack, ts_ns
                continue
            probe = (
                previous_ns is not None
                and (advanced_ns is None or advanced_ns <= previous_ns)
                and 0 < long_ns < ts_ns - previous_ns
            )
            if previous_ns is not None and advanced_ns is not None and highest is not None:
                clocked = previous_ns < advanced_ns and ts_ns - advanced_ns < _PROMPT_NS
                full = room_end is not None and _ahead(highest + _SEGMENT_BYTES & 0xFFFFFFFF, room_end)
                found += [(previous_ns, ts_ns)] if clocked and not full else []
            previous_ns = previous_ns if probe else ts_ns
            if highest is None or _ahead(packet.end_seq, highest):
                highest = packet.end_seq
            # What the peer allowed when this was sent holds until its next acknowledgement.
            room_end = self._room_end(ts_ns)
        return found

    def _room_end(self, at_ns: int) -> int | None:
        if self._scale is None:
            return None
        latest = bisect_right(self.acks, at_ns, key=lambda p: p.ts_ns)
        if not latest:
            return None
        packet = self.acks[latest - 1]
        return (packet.ack + (packet.window << self._scale)) & 0xFFFFFFFF


def data_blocks(link: Link) -> list[Interval]:
    """First data segment that did not arrive when it was first sent, to the sending of the next that did.

    For a message of which everything is blocked from one moment to another.
    """
    delay = link.first_delay
    if delay is None:
        return []
    latest_ns = 2 * (delay[1] - delay[0]) + _QUEUED_NS
    came: dict[int, list[int]] = defaultdict(list)
    for packet in link.arrived:
        came[packet.seq].append(packet.ts_ns)
    blocked_ns = None
    for packet in link.sent:
        arrived = any(0 <= at_ns - packet.ts_ns < latest_ns for at_ns in came[packet.seq])
        if not arrived and blocked_ns is None:
            blocked_ns = packet.ts_ns
        elif arrived and blocked_ns is not None:
            return [(blocked_ns, packet.ts_ns)]
    return []


def window_scale(syn: CapturedPacket) -> int | None:
    """The window scale option of a SYN or SYN-ACK (RFC 7323); None: it has none."""
    from scapy.layers.inet import TCP  # 0.6 s to import

    words = 5 + len(syn.head) // 4
    header = bytes(12) + bytes([words << 4]) + bytes(7) + syn.head
    return next((int(value) for name, value in TCP(header).options if name == "WScale"), None)


def _ahead(one: int, other: int) -> bool:
    """Whether sequence number ``one`` lies behind ``other`` in the stream (32 bits, wrapping)."""
    return 0 < (one - other) & 0xFFFFFFFF < 1 << 31


def holes(link: Link) -> list[Interval]:
    """Stretches in which a segment was missing at the receiver that had been sent and never came:

    from the moment it should have arrived (its sending plus the first segment's delay) to its repair.
    """
    delay = link.first_delay
    if delay is None:
        return []
    one_way_ns = delay[1] - delay[0]
    came: dict[int, list[int]] = defaultdict(list)
    for packet in link.arrived:
        came[packet.seq].append(packet.ts_ns)
    sent: dict[int, list[int]] = defaultdict(list)
    for packet in link.sent:
        sent[packet.seq].append(packet.ts_ns)
    found = []
    for seq, times in sent.items():
        arrivals = sorted(came.get(seq, ()))
        # Sent more often than it came: one was lost on the way.
        if len(times) > len(arrivals) and arrivals:
            found.append((times[0] + one_way_ns, arrivals[0]))
    return found
