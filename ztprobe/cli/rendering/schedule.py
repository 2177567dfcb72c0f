"""What ``ztprobe profile`` says of schedules: in a few words, as a table, and drawn over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.report.wording import plural

if TYPE_CHECKING:
    from ztprobe.profile.model import Profile
    from ztprobe.profile.schedule import Schedule

__all__ = ("plot", "range_words", "schedule_dict", "schedule_words", "step_rows")

_COLUMNS, _ROWS, _LABEL = 80, 5, 10
_LEVELS = " ▁▂▃▄▅▆▇█"
_MOST_ROWS = 24
_QUANTITIES = (
    ("delay_ms", "delay", "ms", max),
    ("loss_pct", "loss", "%", max),
    ("rate_mbit", "rate", "Mbit/s", min),
)


def schedule_words(profile: Profile) -> str:
    """``8 steps in 1m, again and again: delay 15 … 60 ms, loss 0.5 %``."""
    schedule = profile.schedule
    assert schedule is not None
    ranges = []
    for key, name, unit, _ in _QUANTITIES:
        values = [getattr(step, key) for step in schedule.steps]
        known = [value for value in values if value is not None]
        if not any(known):
            continue
        low, high = min(known), max(known)
        text = f"{name} {low:.4g} {unit}" if low == high else f"{name} {low:.4g} … {high:.4g} {unit}"
        ranges.append(text + (" or no limit" if len(known) < len(values) else ""))
    return f"{_turns(schedule)}: {', '.join(ranges)}"


def range_words(profile: Profile, key: str) -> str:
    """What a value is over all steps: ``15 … 60``, or the one that it always is."""
    values = list(dict.fromkeys(getattr(step, key) for step in profile.steps))
    if key == "distribution":
        return ", ".join(values)
    numbers = sorted(value for value in values if value is not None)
    words = (
        [f"{numbers[0]:g}"] if len(numbers) == 1 else [f"{numbers[0]:g} … {numbers[-1]:g}"] if numbers else []
    )
    return " or ".join([*words, *(["none"] if None in values else [])])


def _turns(schedule: Schedule) -> str:
    count = f"{plural(len(schedule.steps), 'step')} in {schedule.length_ns / 1e9:g} s"
    return f"{count}, again and again" if schedule.period_ns is not None else f"{count}, the last one stays"


def schedule_dict(profile: Profile) -> dict[str, Any] | None:
    """For --json."""
    schedule = profile.schedule
    if schedule is None:
        return None
    return {
        "repeat": schedule.period_ns is not None,
        "length_s": schedule.length_ns / 1e9,
        "steps": [
            {
                "from_s": step.at_ns / 1e9,
                "for_s": _seconds(schedule.duration_ns(index)),
                "delay_ms": step.delay_ms,
                "jitter_ms": step.jitter_ms,
                "distribution": step.distribution,
                "loss_pct": step.loss_pct,
                "rate_mbit": step.rate_mbit,
            }
            for index, step in enumerate(schedule.steps)
        ],
    }


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / 1e9


def step_rows(profile: Profile) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows of a table of the steps, the first of them if there are many."""
    schedule = profile.schedule
    assert schedule is not None
    columns = ["step", "from s", "for s", "delay ms", "jitter ms", "distribution", "loss %", "Mbit/s"]
    rows: list[tuple[str, ...]] = []
    for index, step in enumerate(schedule.steps[:_MOST_ROWS]):
        lasts_s = _seconds(schedule.duration_ns(index))
        rows.append(
            (
                str(index + 1),
                f"{step.at_ns / 1e9:g}",
                "stays" if lasts_s is None else f"{lasts_s:g}",
                f"{step.delay_ms:g}",
                f"{step.jitter_ms:g}",
                step.distribution,
                f"{step.loss_pct:g}",
                "no limit" if step.rate_mbit is None else f"{step.rate_mbit:g}",
            )
        )
    if (more := len(schedule.steps) - _MOST_ROWS) > 0:
        rows.append(("…", f"{more} more", *[""] * (len(columns) - 2)))
    return columns, rows


def plot(profile: Profile, width: int = 100) -> list[str]:
    """What changes, over one turn of the schedule, at most ``width`` columns wide (40 and more).

    A column that several steps share shows the worst of them, so that short ones can be seen.
    """
    schedule = profile.schedule
    assert schedule is not None
    length_ns = schedule.length_ns
    if schedule.period_ns is None:  # and what stays, for a while
        length_ns = max(math.ceil(length_ns * 1.15), 1_000_000_000)
    columns = min(_COLUMNS, max(width, 40) - _LABEL - 2)
    lines: list[str] = []
    for key, name, unit, worst in _QUANTITIES:
        values = [getattr(step, key) for step in schedule.steps]
        if not any(values) or (len(set(values)) == 1 and key != "delay_ms"):
            continue
        shown = []
        for column in range(columns):
            met = _steps_within(schedule, column * length_ns // columns, (column + 1) * length_ns // columns)
            known = [values[index] for index in met if values[index] is not None]
            shown.append(worst(known) if known else None)
        lines += [f"{name} [{unit}]", *_bars(shown)]
    last = f"{length_ns / 1e9:g} s"
    middle = f"{length_ns / 2e9:g}"
    axis = "0" + middle.rjust(columns // 2 - 1 + len(middle) // 2)
    lines.append(" " * (_LABEL + 1) + axis + last.rjust(columns - len(axis)))
    return lines


def _steps_within(schedule: Schedule, from_ns: int, to_ns: int) -> list[int]:
    found = [schedule.at(from_ns)]
    while (until_ns := found[-1].until_ns) is not None and until_ns < to_ns:
        found.append(schedule.at(until_ns))
    return [position.step for position in found]


def _bars(values: Sequence[float | None]) -> list[str]:
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    lines = []
    for row in range(_ROWS, 0, -1):
        cells = ""
        for value in values:
            if value is None:
                cells += "∙" if row == _ROWS else " "  # not limited
                continue
            eighths = round(value / top * _ROWS * 8)
            if value > 0:
                eighths = max(eighths, 1)
            cells += _LEVELS[min(8, max(0, eighths - (row - 1) * 8))]
        label = f"{top:.4g}" if row == _ROWS else "0" if row == 1 else ""
        lines.append(f"{label:>{_LABEL}} {'┤' if label else '│'}{cells}".rstrip())
    return lines
