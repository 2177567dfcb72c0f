"""Two clocks, converted once and one way.

Kernel events carry CLOCK_MONOTONIC (``bpf_ktime_get_ns``), and all arithmetic stays in
it to the end. Wall-clock time is for people, so a run keeps pairs of both clocks and
converts only where a date is printed. Between samples the offset is interpolated,
outside of them the nearest one holds. On one machine both clocks are slewed alike, so an
offset that changes means that someone stepped the wall clock.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ("Clock", "ClockSample", "take_sample")


@dataclass(frozen=True, kw_only=True, order=True)
class ClockSample:
    """Both clocks at one instant."""

    time_monotonic_ns: int
    time_unix_ns: int

    @property
    def offset_ns(self) -> int:
        """What to add to monotonic time to get Unix time."""
        return self.time_unix_ns - self.time_monotonic_ns


def take_sample(tries: int = 5) -> ClockSample:
    """Read both clocks together; of ``tries`` the one that was interrupted least."""
    best: tuple[int, ClockSample] | None = None
    for _ in range(max(tries, 1)):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        unix = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        sample = ClockSample(time_monotonic_ns=(before + after) // 2, time_unix_ns=unix)
        if best is None or after - before < best[0]:
            best = (after - before, sample)
    assert best is not None
    return best[1]


class Clock:
    """Unix time of monotonic instants, by a run's samples."""

    def __init__(self, samples: Iterable[ClockSample]) -> None:
        """:raises ValueError: there is no sample."""
        self._samples = sorted(samples)
        if not self._samples:
            raise ValueError("no clock sample")

    @classmethod
    def of_run(cls, meta: Mapping[str, Any]) -> Clock:
        """The clock of a run, from run.json's ``clock_samples``."""
        return cls(
            ClockSample(time_monotonic_ns=pair["time_monotonic_ns"], time_unix_ns=pair["time_unix_ns"])
            for pair in meta["clock_samples"]
        )

    def offset_ns(self, time_monotonic_ns: int) -> int:
        """Unix minus monotonic time at that instant."""
        after = bisect_right(self._samples, time_monotonic_ns, key=lambda sample: sample.time_monotonic_ns)
        if after == 0 or after == len(self._samples):
            return self._samples[min(after, len(self._samples) - 1)].offset_ns
        left, right = self._samples[after - 1], self._samples[after]
        span = right.time_monotonic_ns - left.time_monotonic_ns
        passed = time_monotonic_ns - left.time_monotonic_ns
        # integers throughout: a float cannot hold a Unix time in nanoseconds
        return left.offset_ns + (right.offset_ns - left.offset_ns) * passed // span

    def unix_ns(self, time_monotonic_ns: int) -> int:
        """Unix time of a monotonic instant."""
        return time_monotonic_ns + self.offset_ns(time_monotonic_ns)

    @property
    def offset_change_ns(self) -> int:
        """How far the offset moved from the first sample to the last."""
        return self._samples[-1].offset_ns - self._samples[0].offset_ns
