"""A moment of a saved run, as people write it. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from ztprobe.errors import RunDirError, UsageError
from ztprobe.printable import printable
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run

__all__ = ("moment_ns",)

_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d\d):(\d\d(?:\.\d{1,9})?)")
_ROUND = re.compile(r"round\s*(\d{1,9})")
_FORMS = "expected a time such as 10:51:42.736 (UTC), 2026-01-31T10:51:42Z or round3"


def moment_ns(run: Run, text: str, option: str) -> int:
    """When that was, CLOCK_MONOTONIC.

    :param text: the time of a day, as every list of a run's events has it; a date and a time; or a round,
        which stands for its beginning.
    :param option: for messages.
    :raises UsageError: it is none of them, or was not in the run.
    :raises RunDirError: the run has no clock.
    """
    said = f"{option} {printable(text)}"
    if (named := _ROUND.fullmatch(text.strip())) is not None:
        begins = {
            one.get("round"): one["time_monotonic_ns"] for one in run.rounds if one["event"] == "round_start"
        }
        if int(named[1]) not in begins:
            raise UsageError(f"{said}: the run has {len(begins)} rounds, and none of that number")
        return int(begins[int(named[1])])
    try:
        samples = sorted(int(one["time_monotonic_ns"]) for one in run.meta["clock_samples"])
        clock = Clock.of_run(run.meta)
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirError(f"{run.path}: its record of the clocks is damaged") from error
    begin, end = (_when(clock.unix_ns(at_ns)) for at_ns in (samples[0], samples[-1]))
    asked = _asked(text.strip(), begin, said)
    if not begin <= asked <= end:
        raise UsageError(f"{said}: the run went on from {begin:%Y-%m-%dT%H:%M:%S}Z to {end:%H:%M:%S}Z")
    wanted_ns = round(asked.timestamp() * 1e9)
    # Between samples the clocks' difference hardly changes: that of the sample which comes nearest holds.
    tried = [wanted_ns - (clock.unix_ns(at_ns) - at_ns) for at_ns in samples]
    return min(tried, key=lambda at_ns: abs(clock.unix_ns(at_ns) - wanted_ns))


def _when(unix_ns: int) -> datetime:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC)


def _asked(text: str, begin: datetime, said: str) -> datetime:
    try:
        if (found := _TIME_OF_DAY.fullmatch(text)) is not None:
            midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
            when = midnight + timedelta(hours=int(found[1]), minutes=int(found[2]), seconds=float(found[3]))
            return when if when >= begin - timedelta(hours=12) else when + timedelta(days=1)
        when = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{said}: {_FORMS}") from error
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
