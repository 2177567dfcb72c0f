"""What was lost of a message on its way, and how long its receiver missed it."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.evidence.values import KernelEvents
from analysis.flows.turns import Turn
from analysis.intervals import Segment, union

__all__ = ("repairs_of",)


def repairs_of(events: KernelEvents, turns: Iterable[Turn]) -> list[Segment]:
    """The stalls of these turns: from when a lost original should have arrived to when its repair did.

    What the receiver said it had already (DSACK, RFC 2883) was not lost.
    """
    holes = []
    for turn in turns:
        sent_again = events.retransmissions.get((turn.pod, turn.key), ())
        if not sent_again:
            continue
        twice = [
            (one.seq, one.bytes)
            for (_, key), found in events.duplicate_acks.items()
            if key == turn.key
            for one in found
        ]
        way_ns = max(0, turn.arrived_ns - turn.first_ns)
        holes += [
            ((one.first_sent_ns or one.ts_ns) + way_ns, one.ts_ns + way_ns)
            for one in sent_again
            if turn.first_ns <= one.ts_ns <= turn.whole_ns
            and (one.seq - turn.first_seq) & 0xFFFFFFFF < turn.bytes
            and not any((one.seq - seq) & 0xFFFFFFFF < count for seq, count in twice)
        ]
    return [Segment(start, end, "retransmission", ("transmission",)) for start, end in union(holes)]
