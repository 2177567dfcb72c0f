"""When a network profile changes, and to what: pure.

A schedule is a row of steps, each in force from its own time until the next one's. With a
period it begins again at its end; without one the last step stays. A step holds the five
values that change on a moving or switching path, each of them whole: what a step of the file
leaves out is filled in from the profile when it is read (``ztprobe.profile.file``).

Times are offsets from the schedule's beginning, so the same schedule can be followed by a
lease, by a traced job, and by the analysis of what either of them wrote down.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass

__all__ = ("CHANGING", "Position", "Schedule", "Step")

CHANGING = ("delay_ms", "jitter_ms", "distribution", "loss_pct", "rate_mbit")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is in force from one moment of a schedule on."""

    at_ns: int  # from the schedule's beginning
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    distribution: str = "none"
    loss_pct: float = 0.0
    rate_mbit: float | None = None  # None: not limited


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in a schedule a moment lies."""

    number: int  # of changes since the beginning, over all repetitions
    step: int  # index of the step in force
    from_ns: int  # offsets from the schedule's beginning
    until_ns: int | None  # None: it stays


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps in time.

    :raises ValueError: no step, or times that do not ascend from 0.
    """

    steps: tuple[Step, ...]
    period_ns: int | None = None  # after which it begins again; None: the last step stays

    def __post_init__(self) -> None:
        if not self.steps or self.steps[0].at_ns != 0:
            raise ValueError("schedule: expected steps, the first one at time 0")
        ends = (*self._times_ns[1:], *(() if self.period_ns is None else (self.period_ns,)))
        for before_ns, after_ns in zip(self._times_ns, ends, strict=False):
            if after_ns <= before_ns:
                raise ValueError("schedule: expected times that ascend")

    @functools.cached_property
    def _times_ns(self) -> tuple[int, ...]:
        return tuple(step.at_ns for step in self.steps)

    @property
    def length_ns(self) -> int:
        """Until it begins again, or until nothing changes any more."""
        return self._times_ns[-1] if self.period_ns is None else self.period_ns

    def duration_ns(self, index: int) -> int | None:
        """How long a step is in force; None: it stays."""
        end_ns = self._times_ns[index + 1] if index + 1 < len(self.steps) else self.period_ns
        return None if end_ns is None else end_ns - self._times_ns[index]

    def at(self, elapsed_ns: int) -> Position:
        """What is in force so long after the beginning (before it: the first step)."""
        turn, within_ns = 0, max(0, elapsed_ns)
        if self.period_ns is not None:
            turn, within_ns = divmod(within_ns, self.period_ns)
        index = bisect.bisect_right(self._times_ns, within_ns) - 1
        start_ns = turn * (self.period_ns or 0) + self._times_ns[index]
        duration_ns = self.duration_ns(index)
        return Position(
            number=turn * len(self.steps) + index,
            step=index,
            from_ns=start_ns,
            until_ns=None if duration_ns is None else start_ns + duration_ns,
        )
