"""Messages too short to be told from frames by their length: by who spoke when.

A run that is traced turn by turn (`turns` in docs/events.md) shows every exchange, also the hundred bytes
of a key. Frames (window updates, pings and their answers) share the connection: they go beside a long
message, in a turn of their own that is shorter than any message, or just ahead of a message in one turn
with it. So a short message is placed by its last byte, at every hop: it fits into a window and takes no time
from its first byte to its last.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.evidence.values import Burst, Key, LoKey
from analysis.ledger.connections import FRAMES_BYTES, Path, Topology
from analysis.ledger.timeline import HopMessage, overlaps
from ztprobe.events.kinds import Direction, Hook

__all__ = ("short_messages_of",)

# Where there is TLS: 43 bytes of frames in three records; and the shortest message is longer by one.
_SEALED_FRAMES_BYTES = 120
# TLS around what a sidecar passes on, a record or some.
_ENVELOPE_BYTES = 150
# Two hooks on one machine read one clock; this covers the order in which they run.
_ORDER_SLACK_NS = 200_000


def short_messages_of(topology: Topology, path: Path, down: bool) -> list[HopMessage]:
    """The short messages that went over a path in one direction, in time order."""
    sender, receiver = (path.server, path.client) if down else (path.client, path.server)
    sender_lo, receiver_lo = (path.server_lo, path.client_lo) if down else (path.client_lo, path.server_lo)
    on_loopback = Direction.TX if down else Direction.RX
    least_bytes = FRAMES_BYTES if path.client_lo is None else _SEALED_FRAMES_BYTES
    arrived = _turns(topology, receiver, Hook.ETH, path.wire, Direction.RX)
    handed = _loopback_turns(topology, sender_lo, on_loopback)
    delivered = _loopback_turns(topology, receiver_lo, on_loopback)
    found = []
    for turn in _turns(topology, sender, Hook.ETH, path.wire, Direction.TX):
        if turn.bytes < least_bytes:
            continue
        sent = _placed(turn, turn.last_ns)
        arrival = _arrival(turn, arrived)
        before = [h for h in handed if h.last_ns <= turn.last_ns + _ORDER_SLACK_NS and _fits(h, turn)]
        after = (
            d
            for d in delivered
            if arrival is not None and d.last_ns >= arrival.last_ns - _ORDER_SLACK_NS and _fits(d, turn)
        )
        delivery = next(after, None)
        found.append(
            HopMessage(
                path=path,
                down=down,
                handed=_placed(before[-1], min(before[-1].last_ns, turn.last_ns)) if before else None,
                sent=sent,
                arrived=arrival,
                delivered=None if delivery is None else _placed(delivery, delivery.last_ns),
                read=None,
            )
        )
    return found


def _placed(turn: Burst, at_ns: int) -> Burst:
    return turn._replace(first_ns=at_ns, last_ns=at_ns)


def _arrival(turn: Burst, arrived: Sequence[Burst]) -> Burst | None:
    """Where a turn's last byte arrived. There frames may have come right behind it, in the same turn."""
    for each in arrived:
        if each.last_ns >= turn.last_ns - _ORDER_SLACK_NS and overlaps(turn, each):
            behind = (each.end_seq - turn.end_seq) & 0xFFFFFFFF
            if not behind:
                return _placed(each, each.last_ns)
            if behind < 1 << 31:
                same = each.first_seq == turn.first_seq
                return _placed(each, max(each.first_ns if same else each.last_ns, turn.last_ns))
    return None


def _fits(inside: Burst, wire: Burst) -> bool:
    """Whether what went over a loopback can be what is in this many bytes on the wire."""
    return wire.bytes - _ENVELOPE_BYTES <= inside.bytes <= wire.bytes + FRAMES_BYTES


def _loopback_turns(topology: Topology, lo: LoKey | None, direction: Direction) -> list[Burst]:
    return _turns(topology, lo.pod, Hook.LO, lo, direction) if lo is not None else []


def _turns(topology: Topology, pod: str, hook: Hook, key: Key, direction: Direction) -> list[Burst]:
    """Those that are no frames, no part of a long message, and do not go beside one."""
    turns = topology.events.turns.get((pod, hook, key), {}).get(direction, ())
    other = Direction.RX if direction is Direction.TX else Direction.TX
    long_ones = topology.messages(pod, hook, key, direction)
    answered = topology.messages(pod, hook, key, other)
    return [
        turn
        for turn in turns
        if turn.bytes >= FRAMES_BYTES
        and not any(overlaps(one, turn) for one in long_ones)
        and not _is_beside(turn, answered)
    ]


def _is_beside(turn: Burst, answered: Sequence[Burst]) -> bool:
    return any(one.first_ns <= turn.last_ns <= one.last_ns for one in answered)
