"""Intervals on the monotonic clock: integer nanoseconds, half open, exact.

The ledger's exactness rests here: `paint` cuts a round into pieces that neither
overlap nor leave a hole, so the pieces' lengths sum to the round's, whatever the
events say.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ("Segment", "clip", "merged", "overlap_ns", "paint", "total_ns", "union")

Interval = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """A stretch of time that belongs to one component."""

    start_ns: int
    end_ns: int
    component: str
    # On an overlay: the components it may take time from; empty: any.
    over: tuple[str, ...] = ()


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Sorted, merged, without empty ones."""
    merged: list[Interval] = []
    for start, end in sorted(i for i in intervals if i[1] > i[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def merged(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[Interval]:
    """What `union` makes of intervals that are sorted by their starts already, as arrays."""
    lasting = ends > starts
    starts, ends = starts[lasting], ends[lasting]
    if not len(starts):
        return []
    reach = np.maximum.accumulate(ends)
    first = np.append(True, starts[1:] > reach[:-1])
    last = np.append(first[1:], True)
    return list(zip(starts[first].tolist(), reach[last].tolist(), strict=True))


def clip(intervals: Iterable[Interval], start_ns: int, end_ns: int) -> list[Interval]:
    """What lies inside [start, end)."""
    return [(max(s, start_ns), min(e, end_ns)) for s, e in intervals if min(e, end_ns) > max(s, start_ns)]


def total_ns(intervals: Iterable[Interval]) -> int:
    """Length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def overlap_ns(a: Iterable[Interval], b: Iterable[Interval]) -> int:
    """How long both unions last together."""
    first, second = union(a), union(b)
    i = j = shared_ns = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        shared_ns += max(0, end - start)
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return shared_ns


def paint(start_ns: int, end_ns: int, base: Sequence[Segment], overlays: Sequence[Segment]) -> list[Segment]:
    """Cut [start, end) into pieces, each owned by one component; what nothing claims is "residual".

    The first base segment that covers an instant owns it, unless an overlay that may
    take time from that owner covers it too; the first such overlay wins.
    """
    segments = [s for s in (*base, *overlays) if s.end_ns > s.start_ns]
    cuts = {start_ns, end_ns}
    for segment in segments:
        cuts.update(t for t in (segment.start_ns, segment.end_ns) if start_ns < t < end_ns)
    edges = sorted(cuts)
    pieces: list[Segment] = []
    for left, right in itertools.pairwise(edges):
        owner = next((s.component for s in base if s.start_ns <= left and right <= s.end_ns), "residual")
        for overlay in overlays:
            if (
                overlay.start_ns <= left
                and right <= overlay.end_ns
                and (not overlay.over or owner in overlay.over)
            ):
                owner = overlay.component
                break
        if pieces and pieces[-1].component == owner:
            pieces[-1] = Segment(pieces[-1].start_ns, right, owner)
        else:
            pieces.append(Segment(left, right, owner))
    return pieces
