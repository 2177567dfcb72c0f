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
from typing import NamedTuple

from analysis.evidence.values import ACK, SYN, Endpoint, Retransmission, Wire, wire_between
from analysis.intervals import Segment
from analysis.ledger.connections import Topology
from analysis.ledger.handshakes import read_setup
from analysis.ledger.timeline import HopMessage
from ztprobe.events.kinds import Direction

__all__ = ("PolicyWait", "policy_waits", "wait_overlays")

_REASON = "NETFILTER_DROP"
_NEVER_NS = 1 << 62
# From the first answer to a name, through the rest of the search list, to the connection it was for.
_RESOLVING_NS = 5_000_000_000
# Longer than any profile's delay: what was sent earlier is not what is dropped now.
_ON_ITS_WAY_NS = 500_000_000
_HANDSHAKING = ("syn_sent", "syn_recv")
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


def policy_waits(topology: Topology) -> dict[str, list[PolicyWait]]:
    """Client -> stretches during which policy blocked its traffic with a peer that it reached later."""
    waits: dict[str, list[PolicyWait]] = defaultdict(list)
    for flow, drops in sorted(_blocked(topology).items(), key=lambda item: item[1][0].ts_ns):
        attempts = _attempts(topology, flow, drops)
        # What never passes again is nobody's wait, unless it is the way to the server: our own
        # probes knock at doors that stay shut.
        for_good = flow.peer == topology.server and flow.port in topology.ports
        end_ns = 0
        on_its_way_ns = 0 if flow.wire is None else _round_trip_ns(topology, flow.client, flow.wire)
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
                over = () if flow.wire is None else _costs(topology, flow.client, flow.wire, start_ns)
                waits[flow.client].append(
                    PolicyWait(Segment(start_ns, end_ns, "policy_drop", over), flow.wire)
                )
    return dict(waits)


def wait_overlays(
    waits: Sequence[PolicyWait], messages: Sequence[HopMessage | None], end_ns: int
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


def _blocked(topology: Topology) -> dict[_Flow, list[_Drop]]:
    """Flow -> what the node dropped of it, in time order."""
    pods = _pods(topology)
    found: dict[_Flow, list[_Drop]] = defaultdict(list)
    for drop in topology.events.drops.get("node", ()):
        source, target = pods.get(drop.source.address), pods.get(drop.target.address)
        if drop.reason != _REASON or drop.protocol not in ("tcp", "udp") or source is None or target is None:
            continue
        if source in topology.clients:
            client, peer, port = source, target, drop.target.port
        elif target in topology.clients:
            client, peer, port = target, source, drop.source.port
        else:
            continue
        udp = drop.protocol == "udp"
        connecting = udp or bool(drop.tcp_flags & SYN)
        # Number -1: a connection of which nothing else was seen.
        wire = None if connecting else drop.wire or wire_between(drop.source, drop.target, -1)
        flow = _Flow(client, peer, port, udp, wire, client if connecting else source)
        found[flow].append(_Drop(drop.ts_ns, drop.seq, drop.payload_bytes))
    return {flow: sorted(drops) for flow, drops in found.items()}


def _pods(topology: Topology) -> dict[str, str]:
    return {address: pod for pod, address in topology.addresses.items()}


def _attempts(topology: Topology, flow: _Flow, drops: Sequence[_Drop]) -> _Attempts:
    if flow.udp:
        return _questions(topology, flow)
    if flow.wire is None:
        return _connects(topology, flow)
    return _retransmissions(topology, flow, drops)


def _questions(topology: Topology, flow: _Flow) -> _Attempts:
    tried: list[int] = []
    passed: list[int] = []
    latest: dict[tuple[int, int], int] = {}
    for message in topology.events.dns:
        if (
            message.pod != flow.client
            or message.remote != topology.addresses[flow.peer]
            or len(message.data) < 4
        ):
            continue
        key = (message.local_port, struct.unpack_from(">H", message.data)[0])
        if message.direction == Direction.TX:
            tried.append(message.ts_ns)
            latest[key] = message.ts_ns
        elif key in latest:
            passed.append(latest.pop(key))
    return _Attempts(sorted(tried), sorted(passed))


def _connects(topology: Topology, flow: _Flow) -> _Attempts:
    tried: list[int] = []
    passed: list[int] = []
    target = Endpoint(topology.addresses[flow.peer], flow.port)
    for path in topology.paths:
        if path.client != flow.client or target not in (path.wire.one, path.wire.other):
            continue
        latest_ns = None
        for packet in topology.packets(path):
            if not packet.opens:
                continue
            if packet.direction == Direction.TX:
                latest_ns = packet.ts_ns
                tried.append(latest_ns)
            elif packet.tcp_flags & ACK and latest_ns is not None:
                passed.append(latest_ns)
                break
    return _Attempts(sorted(tried), sorted(passed))


def _retransmissions(topology: Topology, flow: _Flow, drops: Sequence[_Drop]) -> _Attempts:
    if flow.wire is None:
        return _Attempts([], [])
    copies = sorted(
        (
            copy
            for copy in topology.events.retransmissions.get((flow.sender, flow.wire), ())
            if copy.tcp_state not in _HANDSHAKING
        ),
        key=lambda copy: copy.ts_ns,
    )
    blocked = {_blocked_copy(copies, drop) for drop in drops}
    one_way_ns = _round_trip_ns(topology, flow.client, flow.wire) // 2
    passed = []
    for at, copy in enumerate(copies):
        before_ns = [drop.ts_ns - one_way_ns for drop in drops if drop.ts_ns - one_way_ns < copy.ts_ns]
        if at not in blocked and before_ns:
            # What was acknowledged has passed, and so was sent after the last that was dropped.
            passed.append(max(copy.later_sent_ns or copy.ts_ns, before_ns[-1] + 1))
    return _Attempts([copy.ts_ns for copy in copies], sorted(passed))


def _round_trip_ns(topology: Topology, client: str, wire: Wire) -> int:
    """A connection's, as its first packets had it; 0: not seen."""
    setup = read_setup(topology.events.packets.get((client, wire), ()))
    if setup is None or setup.established_ns is None:
        return 0
    return min(setup.established_ns - setup.syn_ns, _ON_ITS_WAY_NS)


def _blocked_copy(copies: Sequence[Retransmission], drop: _Drop) -> int:
    """Which of the retransmissions was dropped; -1: none, it was an original or carried nothing."""
    for at in range(bisect_right(copies, drop.ts_ns, key=lambda copy: copy.ts_ns) - 1, -1, -1):
        copy = copies[at]
        if drop.ts_ns - copy.ts_ns >= _ON_ITS_WAY_NS:
            break
        # Without a sequence number, the last attempt before.
        apart = (drop.seq - copy.seq) & 0xFFFFFFFF
        same = apart < copy.bytes or (-apart & 0xFFFFFFFF) < drop.payload_bytes
        if not drop.seq or (same and drop.payload_bytes):
            return at
    return -1


def _connected_after(topology: Topology, client: str, answered_ns: int) -> bool:
    """Whether a name was resolved for somebody: a connection to the server follows."""
    return any(
        path.client == client
        and packet.opens
        and packet.direction == Direction.TX
        and not packet.tcp_flags & ACK
        and 0 <= packet.ts_ns - answered_ns < _RESOLVING_NS
        for path in topology.paths
        for packet in topology.packets(path)[:1]
    )


def _costs(topology: Topology, client: str, wire: Wire, start_ns: int) -> tuple[str, ...]:
    """Whose time blocked data of a connection may take; anybody's while the connection is being set up."""
    setup = read_setup(topology.events.packets.get((client, wire), ()))
    being_set_up = setup is not None and setup.syn_ns <= start_ns < (setup.settings_ns or _NEVER_NS)
    return () if being_set_up else _MESSAGE
