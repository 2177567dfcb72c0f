"""Trainings that share CPUs: how much work each was, and when each ends if they begin at other times.

While more trainings than CPUs are under way, each gets an equal share (what Linux' fair scheduler gives equal
threads). The work of a recorded training is the share that it had, summed over its time, so that the same
beginnings give the same ends again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ("ends_of", "work_of")

_DONE_NS = 1e-3


def work_of(spans_ns: Sequence[tuple[float, float]], cpus: int) -> list[float]:
    """CPU nanoseconds of each training. :param spans_ns: from when to when each was under way."""
    cuts = sorted({edge for span in spans_ns for edge in span})
    work = [0.0] * len(spans_ns)
    for left, right in itertools.pairwise(cuts):
        active = [i for i, (begin, end) in enumerate(spans_ns) if begin <= left and right <= end]
        for index in active:
            work[index] += (right - left) * min(1.0, cpus / len(active))
    return work


def ends_of(starts_ns: Sequence[float], work_ns: Sequence[float], cpus: int) -> list[float]:
    """When each training ends."""
    left = list(work_ns)
    ends: list[float | None] = [
        None if work > _DONE_NS else start for start, work in zip(starts_ns, left, strict=True)
    ]
    now = min(starts_ns)
    while any(end is None for end in ends):
        active = [i for i, end in enumerate(ends) if end is None and starts_ns[i] <= now]
        later = [starts_ns[i] for i, end in enumerate(ends) if end is None and starts_ns[i] > now]
        if not active:
            now = min(later)
            continue
        share = min(1.0, cpus / len(active))
        until = min([now + min(left[i] for i in active) / share, *later])
        for index in active:
            left[index] -= (until - now) * share
            if left[index] <= _DONE_NS:
                ends[index] = until
        now = until
    return [end for end in ends if end is not None]
