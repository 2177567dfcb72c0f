"""Following a schedule: what is due is put into force, and what came of it is written down.

A step that came late, was left out because its time had passed before it could be put into
force, or was refused is recorded as such; the ones after it are tried all the same. Times are
CLOCK_MONOTONIC, the clock of the kernel's events, so the analysis can lay them beside each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ztprobe.errors import EnforcementError
from ztprobe.profile.model import Profile
from ztprobe.profile.schedule import CHANGING, Position

__all__ = ("Change", "ScheduleFollower", "ScheduleRunner")

_LATE_NS = 100_000_000

Changer = Callable[[Profile], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One step, put into force or not."""

    due_ns: int
    from_ns: int  # before the change was begun
    at_ns: int | None  # when it was confirmed on all pods; None: it failed
    number: int  # since the beginning, over all repetitions
    step: int
    skipped: int = 0  # steps left out before it: their time had passed
    error: str | None = None

    @property
    def problem(self) -> str | None:
        """What to tell; None: it came in time."""
        if self.error is not None:
            return f"step {self.step + 1} could not be put into force: {self.error}"
        late_ns = (self.at_ns or 0) - self.due_ns
        if self.skipped:
            return f"{self.skipped} steps before step {self.step + 1} were left out: too late"
        return f"step {self.step + 1} came {late_ns / 1e6:.0f} ms late" if late_ns > _LATE_NS else None


class ScheduleRunner:
    """A profile's schedule, begun now with its first step in force already.

    :param clock_ns: CLOCK_MONOTONIC.
    """

    def __init__(
        self, profile: Profile, change: Changer, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        if profile.schedule is None:
            raise ValueError(f"{profile.name} has no schedule")
        self._steps = profile.steps
        self._schedule = profile.schedule
        self._change = change
        self._clock_ns = clock_ns
        self.started_ns = clock_ns()
        self.position: Position = self._schedule.at(0)

    @property
    def next_ns(self) -> int | None:
        """CLOCK_MONOTONIC of the next change; None: there is none."""
        until_ns = self.position.until_ns
        return None if until_ns is None else self.started_ns + until_ns

    def first(self) -> Change:
        """The step that was in force from the beginning."""
        began_ns = self.started_ns
        return Change(due_ns=began_ns, from_ns=began_ns, at_ns=began_ns, number=0, step=0)

    def catch_up(self) -> Change | None:
        """Put into force what is due now; None: nothing is."""
        begun_ns = self._clock_ns()
        position = self._schedule.at(begun_ns - self.started_ns)
        skipped = position.number - self.position.number - 1
        if skipped < 0:
            return None
        self.position = position
        from_ns, at_ns, error = begun_ns, None, None
        try:
            from_ns, at_ns = self._change(self._steps[position.step])
        except EnforcementError as refused:
            error = str(refused)
        return Change(
            due_ns=self.started_ns + position.from_ns,
            from_ns=from_ns,
            at_ns=at_ns,
            number=position.number,
            step=position.step,
            skipped=skipped,
            error=error,
        )


class ScheduleFollower:
    """A thread that follows a schedule until it is stopped, beside whatever goes on.

    :param tell: is given every problem as one line, from the thread.
    """

    def __init__(self, profile: Profile, change: Changer, tell: Callable[[str], None]) -> None:
        self._profile = profile
        self._tell = tell
        self._end = threading.Event()
        self._stepping = ScheduleRunner(profile, change)
        self.changes = [self._stepping.first()]
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stay with what is in force now. Idempotent."""
        self._end.set()
        self._thread.join()

    def record(self) -> dict[str, Any]:
        """What was asked for, and what was in force when, for run.json."""
        schedule = self._profile.schedule
        assert schedule is not None
        asked = [asdict(step) for step in schedule.steps]
        return {
            "name": self._profile.name,
            "repeat": schedule.period_ns is not None,
            "period_s": None if schedule.period_ns is None else schedule.period_ns / 1e9,
            "steps": [{"from_s": step.pop("at_ns") / 1e9, **step} for step in asked],
            "changes": [self._recorded(change) for change in list(self.changes)],
        }

    def _recorded(self, change: Change) -> dict[str, Any]:
        step = self._profile.steps[change.step]
        values = {key: getattr(step, key) for key in CHANGING}
        return {**asdict(change), **values}

    def _run(self) -> None:
        while (next_ns := self._stepping.next_ns) is not None:
            if self._end.wait(max(0.0, (next_ns - time.monotonic_ns()) / 1e9)):
                return
            change = self._stepping.catch_up()
            if change is None:
                continue
            self.changes.append(change)
            if (problem := change.problem) is not None:
                self._tell(f"{self._profile.name}: {problem}")
