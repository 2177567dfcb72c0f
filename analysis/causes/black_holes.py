"""Large packets that vanish on the way where small ones pass, and nobody is told (MTU black holes)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.evidence.values import Burst, Packet, Wire
from analysis.results.drops import DroppedPacket
from ztprobe.events.kinds import Direction, Hook

__all__ = ("recognise_black_holes",)

_LARGE_BYTES = 500  # no small packet of a handshake, or of HTTP/2's control frames
# What is dropped whatever its size.
_ANY_SIZE = ("NO_SOCKET", "QDISC_DROP", "QUEUE_PURGE")
_OF_A_QUEUE = "nfqnl_reinject"  # the verdict of a program, such as a delay line that loses packets
_MANY = 3
# A link's end takes no frame that is longer than its MTU (include/linux/netdevice.h, is_skb_forwardable), nor
# one that comes while it is down: that passes within a moment, for then nothing is sent over it any more.
_TOO_LONG = "__dev_forward_skb"
_DOWN_NS = 2_000_000_000


def recognise_black_holes(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Seen as drops, or as what was sent again in vain."""
    yield from _dropped(case, troubles)
    yield from _sent_in_vain(case, troubles)


def _dropped(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """All that the kernel dropped between two pods is large."""
    dropped: dict[tuple[str, str], list[DroppedPacket]] = defaultdict(list)
    for drop in case.dropped:
        acting = any(t.from_ns <= drop.ts_ns <= t.to_ns for t in troubles)
        by_size = drop.reason not in _ANY_SIZE and drop.location != _OF_A_QUEUE
        if acting and drop.protocol == "tcp" and not drop.noise and by_size:
            dropped[drop.source, drop.target].append(drop)
    for (source, target), drops in dropped.items():
        smallest = min(drop.payload_bytes for drop in drops)
        if len(drops) < _MANY or smallest < _LARGE_BYTES or source not in case.addresses:
            continue
        passed = _passed_later(case, source, target, drops[0].ts_ns)
        if passed is None and _large_arrived(case, source, target) and not _by_their_length(drops):
            continue  # nothing at all passes any more: that is no matter of size
        moments = [
            Moment(
                ts_ns=drop.ts_ns,
                pod=drop.pod,
                event=f"{drop.payload_bytes} bytes {source} -> {target} dropped: {drop.reason}"
                + (f" in {drop.location}" if drop.location else ""),
                shows="too long for the next link, and nobody is told",
            )
            for drop in (drops[0], drops[-1])
        ]
        with_passed = [*moments, *([passed] if passed else [])]
        yield _cause(source, target, smallest, with_passed, 0.95, passes=passed is not None)


def _by_their_length(drops: Sequence[DroppedPacket]) -> bool:
    """Whether the place where they were dropped says that they were too long."""
    lasted_ns = max(drop.ts_ns for drop in drops) - min(drop.ts_ns for drop in drops)
    return lasted_ns > _DOWN_NS and all(drop.location.startswith(_TOO_LONG) for drop in drops)


def _sent_in_vain(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Large segments sent again and again, on a connection on which small ones came back."""
    for (pod, key), sent_again in case.events.retransmissions.items():
        if not isinstance(key, Wire) or pod not in case.addresses:
            continue
        peer = case.pod_of(key.peer_of(case.addresses[pod]).address)
        acting = [
            r
            for r in sent_again
            if any(t.from_ns <= r.ts_ns <= t.to_ns for t in troubles) and r.bytes >= _LARGE_BYTES
        ]
        if len(acting) < _MANY or _large_arrived(case, pod, peer):
            continue
        small = [
            p
            for p in case.events.packets.get((pod, key), ())
            if p.direction == Direction.RX and p.kind == "payload"
        ]
        if not small:
            continue
        moments = [_passing(small[0], pod, peer)]
        moments += [
            Moment(ts_ns=r.ts_ns, pod=pod, event=f"{r.bytes} bytes sent again to {peer}", shows="in vain")
            for r in (acting[0], acting[-1])
        ]
        yield _cause(pod, peer, min(r.bytes for r in acting), moments, 0.85)


def _cause(
    source: str, target: str, size: int, moments: Sequence[Moment], strength: float, *, passes: bool = True
) -> Cause:
    others = "small ones pass" if passes else "a link on the way takes none so long"
    return cause_of(
        "emulation.mtu_black_hole",
        summary=f"packets of {size} bytes and more from {source} to {target} vanish, {others}",
        strength=strength,
        moments=tuple(sorted(moments)),
        remedial=Remedial(
            words=f"lower the MTU at {source} below {size} bytes, or let ICMP 'fragmentation needed' pass"
        ),
        pods=(source,),
        component="retransmission",
        details={"smallest_lost_bytes": size},
    )


def _passing(packet: Packet, pod: str, source: str) -> Moment:
    event = f"{packet.payload_bytes} bytes came from {source}"
    return Moment(ts_ns=packet.ts_ns, pod=pod, event=event, shows="small packets pass")


def _passed_later(case: Case, source: str, target: str, since_ns: int) -> Moment | None:
    """Something that arrived all the same."""
    address = case.addresses[source]
    for (owner, key), packets in case.events.packets.items():
        if owner == target and isinstance(key, Wire) and address in (key.one.address, key.other.address):
            for packet in packets:
                if packet.ts_ns > since_ns and packet.direction == Direction.RX and packet.kind == "payload":
                    return _passing(packet, target, source)
    for burst in _bursts(case, source, target):
        if burst.last_ns > since_ns:
            event = f"{burst.bytes} bytes came from {source}"
            return Moment(ts_ns=burst.last_ns, pod=target, event=event, shows="small packets pass")
    return None


def _large_arrived(case: Case, source: str, target: str) -> bool:
    return any(burst.bytes >= _LARGE_BYTES for burst in _bursts(case, source, target))


def _bursts(case: Case, source: str, target: str) -> Iterator[Burst]:
    """What came from one pod in at another's interface."""
    address = case.addresses.get(source)
    for (owner, hook, key), found in case.events.bursts.items():
        on_wire = owner == target and hook == Hook.ETH and isinstance(key, Wire)
        if on_wire and isinstance(key, Wire) and address in (key.one.address, key.other.address):
            yield from found.get(Direction.RX, ())
