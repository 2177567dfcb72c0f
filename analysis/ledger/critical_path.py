"""One client's way through one round, as segments that each have evidence.

The chain is: server application → (its sidecar) → wire → (the client's sidecar) →
client application → back. Each instant has one owner, downstream first: the wire
while the message is on it, else the proxy while it holds bytes, else the
application. A sidecar that cannot hand its bytes over, because the application
does not read, is not to blame: that wait is the application's. What is cut out of a
stretch afterwards (loss stalls and starved time out of transmission, connection set-up
out of compute) needs an event of its own. Where an edge is missing the stretch stays
unowned, and shows as residual.

A round may have several exchanges one after the other (secure aggregation's): then the chain goes to and
fro as often. And a client may be an edge aggregator: then the ways of its own clients lie within its time
(`analysis.ledger.levels`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from analysis.evidence.values import LoKey, Pause, Wire
from analysis.intervals import Interval, Segment, clip, union
from analysis.ledger.connections import Topology
from analysis.ledger.delays import Delays
from analysis.ledger.handshakes import DnsQuery, Setup
from analysis.ledger.timeline import HopMessage
from ztprobe.events.kinds import Direction, Hook

__all__ = ("Chain", "LedgerExchange", "Transmission", "chain_of", "setup_overlays")

_SET_UP_OVER = ("compute", "residual", "proxy", "server")


class Transmission(NamedTuple):
    """What the sender's socket accounted for while a message was transmitted (sub-row -> ns)."""

    message: HopMessage
    accounted_ns: dict[str, int]
    windows_full: bool  # of packets that waited for one another


class _Repairs(NamedTuple):
    """A message's retransmissions: those of lost originals, and those that the receiver had already."""

    stalls: list[Interval]  # at the receiver
    needed: int
    needless: int
    packets: int  # all of them


class LedgerExchange(NamedTuple):
    """A message down and the one that answers it, as far as they were seen."""

    down: HopMessage | None
    up: HopMessage | None


@dataclass
class Chain:
    """Segments of one client in one round, and what they consist of."""

    client: str
    exchanges: list[LedgerExchange]
    arrivals_ns: list[int] = field(default_factory=list)  # by exchange: the server's application had it all
    base: list[Segment] = field(default_factory=list)
    overlays: list[Segment] = field(default_factory=list)
    transmissions: list[Transmission] = field(default_factory=list)
    compute: Interval | None = None  # before the update: all read .. written, set-up not yet cut out
    turnaround: Interval | None = None  # of an aggregator: its proxy has handed it the model .. its update
    retransmissions: int = 0
    needless_retransmissions: int = 0

    @property
    def down(self) -> HopMessage | None:
        """What brought this round's model."""
        return self.exchanges[0].down if self.exchanges else None

    @property
    def update(self) -> LedgerExchange:
        """The exchange in which the update came: its message up is the longest."""
        return max(
            self.exchanges,
            key=lambda each: -1 if each.up is None else each.up.sent.bytes,
            default=LedgerExchange(None, None),
        )

    @property
    def up(self) -> HopMessage | None:
        """What carried this round's update."""
        return self.update.up

    @property
    def update_arrival_ns(self) -> int | None:
        """The server's application had the update; None: it did not come, or was not seen."""
        at = next((k for k, each in enumerate(self.exchanges) if each is self.update), 0)
        return self.arrivals_ns[at] if at < len(self.arrivals_ns) else None

    @property
    def messages(self) -> list[HopMessage]:
        """All of them, in order."""
        return [message for each in self.exchanges for message in each if message is not None]

    @property
    def arrival_ns(self) -> int | None:
        """The server's application had the last answer; None: it did not come, or was not seen."""
        if not self.exchanges or len(self.arrivals_ns) < len(self.exchanges):
            return None
        return self.arrivals_ns[-1]


def _loss_stalls(topology: Topology, delays: Delays, message: HopMessage, sender: str) -> _Repairs:
    """What was sent again of a message, and how long the receiver missed it.

    An original was lost unless the receiver reported its bytes as a duplicate (DSACK, RFC 2883).
    The hole opens when the original should have arrived and closes with the retransmission. While one is
    open the rest of the message goes on arriving, so what a full queue at the sender dropped stalls nothing:
    the link is as busy as its rate allows, and the time is the rate's. netem gives the same reason for what
    it loses at random; but then no queue is full.
    """
    receiver = message.path.client if sender == topology.server else topology.server
    duplicates = [
        (p.seq, p.bytes)
        for p in topology.events.duplicate_acks.get((receiver, message.path.wire), ())
        if message.sent.first_ns <= p.ts_ns
    ]
    owd_ns = message.one_way_ns
    end_ns = message.last_arrived_ns or message.sent.last_ns
    refused = [
        (p.seq, p.payload_bytes)
        for p in topology.refused(sender, message.path.wire)
        if message.sent.first_ns <= p.ts_ns <= end_ns
    ]
    sent_again = [
        p
        for p in topology.events.retransmissions.get((sender, message.path.wire), ())
        if message.sent.first_ns <= p.ts_ns <= end_ns
    ]
    lost = [p for p in sent_again if not _within(p.seq, duplicates)]
    segment_bytes = max(1, message.sent.bytes // max(1, message.sent.packets))
    packets = sum(-(-p.bytes // segment_bytes) for p in sent_again)
    holes = [
        ((p.first_sent_ns or p.ts_ns) + owd_ns, p.ts_ns + owd_ns)
        for p in lost
        if not (_within(p.seq, refused) and delays.queue_was_full(message, packets, p))
    ]
    return _Repairs(union(holes), len(lost), len(sent_again) - len(lost), packets)


def _within(seq: int, pieces: Sequence[tuple[int, int]]) -> bool:
    """Whether one of these (first sequence number, bytes) holds it."""
    return any((seq - start) & 0xFFFFFFFF < length for start, length in pieces)


def _starved(topology: Topology, message: HopMessage, sender: str) -> list[Segment]:
    """Pauses in which the wire had nothing to carry: the sidecar's while it held bytes, else the sender's."""
    gaps = [
        p
        for p in topology.events.gaps.get((sender, message.path.wire), ())
        if p.hook == Hook.ETH and message.sent.first_ns < p.ts_ns <= message.sent.last_ns
    ]
    application = "server" if message.down else topology.work_of(message.path.client)
    lo = message.path.server_lo if message.down else message.path.client_lo
    lo_gaps = _on_loopback(topology.events.gaps, lo, message)
    shift_ns = message.one_way_ns
    found = []
    for gap in gaps:
        start_ns, end_ns = gap.since_ns, gap.ts_ns
        idle = clip([(p.since_ns, p.ts_ns) for p in lo_gaps], start_ns, end_ns)
        owner = "proxy" if lo is not None else application
        # first match wins: the application's share stands before the proxy's
        found += [Segment(s + shift_ns, e + shift_ns, application, ("transmission",)) for s, e in idle]
        found.append(Segment(start_ns + shift_ns, end_ns + shift_ns, owner, ("transmission",)))
    return found


def _on_loopback(
    pauses: Mapping[tuple[str, Wire | LoKey], Sequence[Pause]], lo: LoKey | None, message: HopMessage
) -> list[Pause]:
    """Pauses of one kind on a loopback connection, in the message's direction."""
    if lo is None:
        return []
    direction = Direction.TX if message.down else Direction.RX
    return [p for p in pauses.get((lo.pod, lo), ()) if p.direction == direction]


def _unread(topology: Topology, message: HopMessage) -> list[Segment]:
    """Where the receiving sidecar had bytes to hand over, and the application's window was closed."""
    lo = message.path.client_lo if message.down else message.path.server_lo
    application = topology.work_of(message.path.client) if message.down else "server"
    return [
        Segment(p.since_ns, p.ts_ns, application, ("proxy",))
        for p in _on_loopback(topology.events.blocked_readers, lo, message)
    ]


def _small_pauses(topology: Topology, message: HopMessage, start_ns: int) -> Segment | None:
    """The starved time of pauses too short for an event, placed at the message's beginning.

    Their sum is measured, their places are not: only the length matters to the ledger.
    """
    starved_ns = message.sent.starved_ns
    sidecar = message.path.server_lo if message.down else message.path.client_lo
    sender = "server" if message.down else topology.work_of(message.path.client)
    owner = "proxy" if sidecar is not None else sender
    return Segment(start_ns, start_ns + starved_ns, owner, ("transmission",)) if starved_ns else None


def _add_message(
    chain: Chain, topology: Topology, delays: Delays, message: HopMessage, end_ns: int, open_ended: bool
) -> int | None:
    """Append a message's hops to the chain; returns when the receiving side's socket had it all."""
    sender = topology.server if message.down else message.path.client
    base = chain.base
    sent_ns = message.sent.first_ns
    has_sidecar = (message.path.server_lo if message.down else message.path.client_lo) is not None
    if has_sidecar and message.handed is not None:
        base.append(Segment(message.first_handed_ns, sent_ns, "proxy"))
    if message.arrived is None or message.last_arrived_ns is None:
        if open_ended:
            base.append(Segment(sent_ns, end_ns, "transmission"))
        return None
    first_ns, last_ns = message.arrived.first_ns, message.last_arrived_ns
    base.append(Segment(sent_ns, first_ns, "propagation"))
    base.append(Segment(first_ns, last_ns, "transmission"))
    repairs = _loss_stalls(topology, delays, message, sender)
    chain.retransmissions += repairs.needed
    chain.needless_retransmissions += repairs.needless
    chain.overlays += [Segment(s, e, "retransmission", ("transmission",)) for s, e in repairs.stalls]
    chain.overlays += _starved(topology, message, sender)
    if (small := _small_pauses(topology, message, first_ns)) is not None:
        chain.overlays.append(small)
    burst = message.sent
    rows = {
        "congestion_window": burst.cwnd_ns,
        "receive_or_http2_window": burst.rwnd_ns + burst.http2_ns,
        "rate_or_queue": burst.queue_ns,
    }
    late = "jitter" if delays.varies(message, repairs.packets) else "rate_or_queue"
    rows[late] = rows.get(late, 0) + message.late_ns
    full = delays.fills_windows(message, repairs.packets)
    chain.transmissions.append(Transmission(message, rows, full))
    delivered_ns = message.last_delivered_ns
    if message.path_has_receiving_sidecar and delivered_ns is not None:
        base.append(Segment(last_ns, max(last_ns, delivered_ns), "proxy"))
        chain.overlays += [s for s in _unread(topology, message) if last_ns < s.end_ns <= delivered_ns]
        return max(last_ns, delivered_ns)
    return None if message.path_has_receiving_sidecar else last_ns


def chain_of(
    topology: Topology,
    delays: Delays,
    client: str,
    exchanges: Sequence[LedgerExchange],
    start_ns: int,
    end_ns: int,
    *,
    open_ended: bool = True,
) -> Chain:
    """A client's segments between ``round_start`` and the end of the round.

    :param exchanges: those of this round that were seen, mostly one: the model down, the update up.
    :param open_ended: what was not seen did not happen before the round's end, so that the state the
        client was in lasted until then; otherwise the evidence may be lost and nobody owns the time.
    """
    chain = Chain(client, list(exchanges))
    since_ns: int | None = start_ns  # the server has had what came before
    for exchange in chain.exchanges:
        down, up = exchange
        is_open = open_ended and up is None
        if down is not None:
            if down.beginning_is_known and since_ns is not None:
                chain.base.append(Segment(since_ns, down.first_handed_ns, "server"))
            received_ns = _add_message(chain, topology, delays, down, end_ns, is_open)
            written_ns = end_ns if is_open else None
            if up is not None and up.beginning_is_known:
                written_ns = up.first_handed_ns
            if received_ns is not None and written_ns is not None:
                _add_work(chain, topology, exchange, received_ns, written_ns)
        if up is None:
            return chain
        since_ns = _add_message(chain, topology, delays, up, end_ns, open_ended)
        if since_ns is not None:
            chain.arrivals_ns.append(max(since_ns, up.last_read_ns or since_ns))
    if chain.exchanges and since_ns is not None:
        chain.base.append(Segment(since_ns, end_ns, "server"))
    return chain


def _add_work(
    chain: Chain, topology: Topology, exchange: LedgerExchange, received_ns: int, written_ns: int
) -> None:
    """The client's own time between two messages; an aggregator's is filled in with its clients' ways."""
    if chain.client in topology.aggregators:
        if exchange is chain.update:
            chain.turnaround = (received_ns, written_ns)
        return
    chain.base.append(Segment(received_ns, written_ns, "compute"))
    if exchange is chain.update and exchange.down is not None:
        chain.compute = (exchange.down.last_read_ns or received_ns, written_ns)


def setup_overlays(
    topology: Topology,
    message: HopMessage | None,
    setup: Setup | None,
    queries: Sequence[DnsQuery],
    since_ns: int,
) -> list[Segment]:
    """What setting up one connection cost, as overlays; nothing for a connection that was there before.

    :param since_ns: look at nothing older (the moment from which the connection could be wanted).
    """
    if setup is None or message is None or setup.syn_ns < since_ns:
        return []
    found = []
    path = message.path
    opened_ns = topology.opened_ns(path.client_lo)
    wanted_ns = max(since_ns, opened_ns) if opened_ns is not None else since_ns
    for query in queries:
        if query.pod == path.client and query.answered_ns is not None and query.asked_ns >= wanted_ns:
            found.append(Segment(query.asked_ns, min(query.answered_ns, setup.syn_ns), "dns", _SET_UP_OVER))
    if setup.established_ns is not None:
        found.append(Segment(setup.syn_ns, setup.established_ns, "tcp_handshake", _SET_UP_OVER))
    if setup.tls is not None and setup.tls.finished_ns is not None:
        found.append(Segment(setup.tls.client_hello_ns, setup.tls.finished_ns, "tls_handshake", _SET_UP_OVER))
    if setup.ready_ns is not None and setup.settings_ns is not None:
        found.append(Segment(setup.ready_ns, setup.settings_ns, "http2_setup", _SET_UP_OVER))
    if opened_ns is not None and setup.ready_ns is not None:
        # what is left between the application's connect and a ready wire is the sidecar's own work
        found.append(Segment(wanted_ns, setup.ready_ns, "proxy", ("compute", "residual")))
    return found
