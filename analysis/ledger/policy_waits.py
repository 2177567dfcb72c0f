"""Time that a network policy cost: from a flow's first blocked attempt to its first that passes.

A drop counts as policy only with the kernel's reason for a packet filter's verdict
(SKB_DROP_REASON_NETFILTER_DROP) and in the node's namespace, where the policy's rules
are; emulated loss has another reason and is never policy. An attempt is what the pod
sent (a SYN, a question, a retransmission), at the moment when it sent it: the drop itself
may happen a profile's delay later. Of an established connection, the copy that was
dropped is known by its sequence number, so that a copy sent before it, and dropped after
none, counts as passed. New data that passes is not reported one by one; but a
retransmission that an acknowledgement of later data caused tells when that was sent.
That a peer answers on another connection, which
was there before, proves nothing. Blocked packets of an established connection can only
cost the time of its own messages: while a client computes, nobody waits for them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from analysis.ledger.connections import Topology, Wire, drop_reasons
from analysis.ledger.handshakes import read_setup
from analysis.ledger.intervals import Segment
from analysis.ledger.timeline import Message
from ztprobe.events.tables import Direction, PacketKind, PointKind, address_number

__all__ = ("PolicyWait", "policy_waits", "wait_overlays")

_REASON = "NETFILTER_DROP"
_NEVER_NS = 1 << 62
_SYN, _ACK = 2, 16
_UDP = 17
# From the first answer to a name, through the rest of the search list, to the connection it was for.
_RESOLVING_NS = 5_000_000_000
# Longer than any profile's delay: what was sent earlier is not what is dropped now.
_ON_ITS_WAY_NS = 500_000_000
_HANDSHAKING = (2, 3)  # TCP_SYN_SENT, TCP_SYN_RECV
_MESSAGE = ("propagation", "transmission", "proxy", "residual")


class _Flow(NamedTuple):
    """What was blocked; ``wire`` None: attempts to connect or to resolve, whatever the pod's own port."""

    client: str
    peer: str
    port: int
    udp: bool
    wire: Wire | None
    sender: str


class _Drop(NamedTuple):
    """``seq`` 0: not known."""

    ts_ns: int
    seq: int
    payload_bytes: int


class _Attempts(NamedTuple):
    tried_ns: list[int]
    passed_ns: list[int]


class PolicyWait(NamedTuple):
    """A stretch during which policy blocked a client; ``wire``: only that connection's messages."""

    segment: Segment
    wire: Wire | None


def policy_waits(topology: Topology, meta: dict[str, Any]) -> dict[str, list[PolicyWait]]:
    """Client -> stretches during which policy blocked its traffic with a peer that it reached later.

    :param meta: run.json; ``drop_reasons`` names the kernel's reason numbers.
    """
    waits: dict[str, list[PolicyWait]] = defaultdict(list)
    for flow, drops in sorted(_blocked(topology, meta).items(), key=lambda item: item[1][0].ts_ns):
        attempts = _attempts(topology, meta, flow, drops)
        # What never passes again is nobody's wait, unless it is the way to the server: our own
        # probes knock at doors that stay shut.
        for_good = flow.peer == topology.server and flow.port in topology.ports
        end_ns = 0
        on_its_way_ns = 0 if flow.wire is None else _round_trip_ns(topology, flow.wire)
        for drop_ns, _, _ in drops:
            # Of an established connection, a drop may be an acknowledgement, which no event shows leaving.
            start_ns = _attempt_ns(attempts.tried_ns, drop_ns) if flow.wire is None else drop_ns
            # One that had been sent when the door opened belongs to the time before.
            if start_ns < end_ns + (on_its_way_ns if end_ns else 0):
                continue
            following = bisect_right(attempts.passed_ns, start_ns - on_its_way_ns // 2)
            if following < len(attempts.passed_ns):
                end_ns = attempts.passed_ns[following]
            elif for_good:
                end_ns = _NEVER_NS
            else:
                continue
            if not flow.udp or _connected_after(topology, flow.client, end_ns):
                over = () if flow.wire is None else _costs(topology, flow.wire, start_ns)
                waits[flow.client].append(
                    PolicyWait(Segment(start_ns, end_ns, "policy_drop", over), flow.wire)
                )
    return dict(waits)


def wait_overlays(
    waits: Sequence[PolicyWait], messages: Sequence[Message | None], end_ns: int
) -> list[Segment]:
    """What of a client's waits counts for these messages (of a round that ends at ``end_ns``)."""
    found = []
    for segment, wire in waits:
        if wire is None:
            found.append(segment)
            continue
        for message in messages:
            if message is None or message.path.wire != wire:
                continue
            if not segment.over:
                found.append(segment)
                continue
            until_ns = message.last_arrived_ns or end_ns
            # What the node drops was sent a path's delay before.
            start_ns = max(segment.start_ns - message.one_way_ns, message.first_handed_ns)
            stop_ns = min(segment.end_ns, until_ns)
            if start_ns < stop_ns:
                found.append(Segment(start_ns, stop_ns, segment.component, segment.over))
    return found


def _attempt_ns(tried_ns: Sequence[int], drop_ns: int) -> int:
    """When that was sent which was dropped: the last attempt before, if it can have taken so long."""
    at = bisect_right(tried_ns, drop_ns)
    return tried_ns[at - 1] if at and drop_ns - tried_ns[at - 1] < _ON_ITS_WAY_NS else drop_ns


def _blocked(topology: Topology, meta: dict[str, Any]) -> dict[_Flow, list[_Drop]]:
    """Flow -> what the node dropped of it, in time order."""
    reasons = drop_reasons(meta, _REASON)
    pods = _pods(meta)
    found: dict[_Flow, list[_Drop]] = defaultdict(list)
    for point in topology.points_of("node", PointKind.DROP):
        source, target = pods.get(point.laddr), pods.get(point.raddr)
        if point.a not in reasons or source is None or target is None:
            continue
        if source in topology.clients:
            client, peer, port, wire = source, target, point.rport, (point.laddr, point.lport)
        elif target in topology.clients:
            client, peer, port, wire = target, source, point.lport, (point.raddr, point.rport)
        else:
            continue
        udp = point.b >> 16 == _UDP
        connecting = udp or bool(point.b & _SYN)
        flow = _Flow(client, peer, port, udp, None if connecting else wire, client if connecting else source)
        found[flow].append(_Drop(int(point.ts_ns), int(point.small_ns), int(point.c)))
    return {flow: sorted(drops) for flow, drops in found.items()}


def _pods(meta: dict[str, Any]) -> dict[int, str]:
    return {address_number(pod["address"]): pod["name"] for pod in meta["pods"]}


def _attempts(topology: Topology, meta: dict[str, Any], flow: _Flow, drops: Sequence[_Drop]) -> _Attempts:
    if flow.udp:
        return _questions(topology, meta, flow)
    if flow.wire is None:
        return _connects(topology, meta, flow)
    return _retransmissions(topology, flow.wire, flow.sender, drops)


def _questions(topology: Topology, meta: dict[str, Any], flow: _Flow) -> _Attempts:
    pods = _pods(meta)
    tried: list[int] = []
    passed: list[int] = []
    latest: dict[tuple[int, int], int] = {}
    for packet in topology.dns_packets:
        if packet.pod != flow.client or pods.get(packet.raddr) != flow.peer or len(packet.data) < 4:
            continue
        key = (int(packet.lport), struct.unpack_from(">H", packet.data)[0])
        if packet.dir == Direction.TX:
            tried.append(int(packet.ts_ns))
            latest[key] = int(packet.ts_ns)
        elif key in latest:
            passed.append(latest.pop(key))
    return _Attempts(sorted(tried), sorted(passed))


def _connects(topology: Topology, meta: dict[str, Any], flow: _Flow) -> _Attempts:
    pods = _pods(meta)
    tried: list[int] = []
    passed: list[int] = []
    for packets in topology.packets.values():
        latest_ns = None
        for packet in packets:
            if packet.kind != PacketKind.SETUP or packet.pod != flow.client or not packet.flags & _SYN:
                continue
            if pods.get(packet.raddr) != flow.peer or packet.rport != flow.port:
                break
            if packet.dir == Direction.TX:
                latest_ns = int(packet.ts_ns)
                tried.append(latest_ns)
            elif packet.flags & _ACK and latest_ns is not None:
                passed.append(latest_ns)
                break
    return _Attempts(sorted(tried), sorted(passed))


def _retransmissions(topology: Topology, wire: Wire, sender: str, drops: Sequence[_Drop]) -> _Attempts:
    copies = sorted(
        (
            point
            for point in topology.wire_points(sender, PointKind.RETRANSMIT, wire)
            if point.c not in _HANDSHAKING
        ),
        key=lambda point: point.ts_ns,
    )
    blocked = {_blocked_copy(copies, drop) for drop in drops}
    one_way_ns = _round_trip_ns(topology, wire) // 2
    passed = []
    for at, copy in enumerate(copies):
        before_ns = [drop.ts_ns - one_way_ns for drop in drops if drop.ts_ns - one_way_ns < copy.ts_ns]
        if at not in blocked and before_ns:
            # What was acknowledged has passed, and so was sent after the last that was dropped.
            passed.append(max(int(copy.small_ns or copy.ts_ns), before_ns[-1] + 1))
    return _Attempts([int(copy.ts_ns) for copy in copies], sorted(passed))


def _round_trip_ns(topology: Topology, wire: Wire) -> int:
    """A connection's, as its first packets had it; 0: not seen."""
    setup = read_setup(topology.packets.get(wire, []))
    if setup is None or setup.established_ns is None:
        return 0
    return min(setup.established_ns - setup.syn_ns, _ON_ITS_WAY_NS)


def _blocked_copy(copies: Sequence[Any], drop: _Drop) -> int:
    """Which of the retransmissions was dropped; -1: none, it was an original or carried nothing."""
    for at in range(bisect_right(copies, drop.ts_ns, key=lambda copy: copy.ts_ns) - 1, -1, -1):
        copy = copies[at]
        if drop.ts_ns - copy.ts_ns >= _ON_ITS_WAY_NS:
            break
        # Without a sequence number, the last attempt before.
        apart = (drop.seq - copy.a) & 0xFFFFFFFF
        same = apart < copy.b or (-apart & 0xFFFFFFFF) < drop.payload_bytes
        if not drop.seq or (same and drop.payload_bytes):
            return at
    return -1


def _connected_after(topology: Topology, client: str, answered_ns: int) -> bool:
    """Whether a name was resolved for somebody: a connection to the server follows."""
    return any(
        packet.pod == client
        and packet.kind == PacketKind.SETUP
        and packet.dir == Direction.TX
        and packet.flags & (_SYN | _ACK) == _SYN
        and 0 <= packet.ts_ns - answered_ns < _RESOLVING_NS
        for packets in topology.packets.values()
        for packet in packets[:1]
    )


def _costs(topology: Topology, wire: Wire, start_ns: int) -> tuple[str, ...]:
    """Whose time blocked data of a connection may take; anybody's while the connection is being set up."""
    setup = read_setup(topology.packets.get(wire, []))
    being_set_up = setup is not None and setup.syn_ns <= start_ns < (setup.settings_ns or _NEVER_NS)
    return () if being_set_up else _MESSAGE
