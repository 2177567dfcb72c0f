"""Runs in which nothing is wrong, over all profiles and levels: slow is not broken."""

from __future__ import annotations

from collections.abc import Sequence

from ztprobe.experiment.names import LEVELS
from ztprobe.validate.faults.model import MODES, NOTHING, Fault, Variant
from ztprobe.validate.faults.plan import PlannedFault

__all__ = ("HEALTHY_RUNS", "healthy_runs")

HEALTHY_RUNS = 30


def healthy_runs(profiles: Sequence[str], count: int = HEALTHY_RUNS) -> list[PlannedFault]:
    """So many runs, profile by profile, each time at the next level and in the other mode."""
    planned = []
    for number in range(count):
        turn, place = divmod(number, len(profiles))
        variant = Variant(
            what="nothing is wrong",
            level=tuple(LEVELS)[(turn + place) % len(LEVELS)],
            shows="went through",
            bulk=True,
            deadline_s=120,
        )
        planned.append(
            PlannedFault(
                fault=Fault(cause=NOTHING, variants=(variant,)),
                number=number + 1,
                variant=variant,
                network=profiles[place],
                mode=MODES[(turn + place) % len(MODES)],
            )
        )
    return planned
