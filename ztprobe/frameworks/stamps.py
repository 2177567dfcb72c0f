"""The clock that stands in a log's lines, if there is one.

Two kinds. What collects a log puts its own stamp before each line: kubelet's files, ``kubectl logs
--timestamps`` and ``docker logs --timestamps`` (RFC 3339 with a zone), ``journalctl`` (``-o short-iso``,
``-o short-precise`` without year or zone). And frameworks print Python's ``asctime``, local time without a
zone, in a container's zone, which is often not this machine's. A zone is found by when lines are received: a
stamp is from the quarter of an hour before, as zones differ by quarters of hours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ("ASCTIME", "LineStamp", "ZoneOf", "asctime_stamp", "without_prefix")

_NS = 1_000_000_000
_QUARTER_NS = 15 * 60 * _NS
# A clock elsewhere may be ahead of the reader's by this much.
_AHEAD_NS = 5 * _NS

_FRACTION = r"(?:[.,](?P<fraction>\d{1,9}))?"
_RFC3339 = re.compile(
    rf"(?P<date>\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d){_FRACTION}(?P<zone>Z|[+-]\d\d:?\d\d) "
    r"(?:(?:stdout|stderr) [FP]\S* )?"
)
# "HOST UNIT[PID]: " follows in journalctl's output.
_JOURNAL_UNIT = re.compile(r"\S+ [^\s:\[]+(?:\[\d+\])?: ")
_SYSLOG = re.compile(rf"(?P<month>[A-Z][a-z]{{2}}) +(?P<day>\d\d?) (?P<time>\d\d:\d\d:\d\d){_FRACTION} ")
ASCTIME = rf"(?P<date>\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d){_FRACTION}"


@dataclass(frozen=True)
class LineStamp:
    """A line's own time. ``unix_ns`` is as if in UTC where the zone is not known."""

    unix_ns: int
    precision_ns: int
    has_zone: bool


def _precision_ns(fraction: str | None) -> int:
    return int(10 ** (9 - len(fraction or "")))


def _fraction_ns(fraction: str | None) -> int:
    return int((fraction or "").ljust(9, "0"))


def _seconds_ns(text: str, form: str) -> int | None:
    try:
        return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()) * _NS
    except (ValueError, OverflowError):
        return None


def without_prefix(line: str, year: int) -> tuple[str, LineStamp | None]:
    """A line without what its collector put before it, and the collector's stamp.

    :param year: of now, for stamps that have none.
    """
    if (found := _RFC3339.match(line)) is not None:
        whole_ns = _seconds_ns(found["date"], "%Y-%m-%dT%H:%M:%S")
        if whole_ns is None:
            return line, None
        unix_ns = whole_ns + _fraction_ns(found["fraction"]) - _zone_ns(found["zone"])
        return _without_unit(line[found.end() :]), LineStamp(unix_ns, _precision_ns(found["fraction"]), True)
    if (found := _SYSLOG.match(line)) is not None:
        text = f"{year} {found['month']} {found['day']} {found['time']}"
        whole_ns = _seconds_ns(text, "%Y %b %d %H:%M:%S")
        if whole_ns is None:
            return line, None
        stamp = LineStamp(whole_ns + _fraction_ns(found["fraction"]), _precision_ns(found["fraction"]), False)
        return _without_unit(line[found.end() :]), stamp
    return line, None


def _without_unit(line: str) -> str:
    unit = _JOURNAL_UNIT.match(line)
    return line[unit.end() :] if unit is not None else line


def _zone_ns(zone: str) -> int:
    if zone == "Z":
        return 0
    minutes = int(zone[1:3]) * 60 + int(zone[-2:])
    return (minutes if zone[0] == "+" else -minutes) * 60 * _NS


def asctime_stamp(found: re.Match[str]) -> LineStamp | None:
    """The stamp of a match that contains `ASCTIME`."""
    whole_ns = _seconds_ns(found["date"], "%Y-%m-%d %H:%M:%S")
    if whole_ns is None:
        return None
    return LineStamp(whole_ns + _fraction_ns(found["fraction"]), _precision_ns(found["fraction"]), False)


class ZoneOf:
    """The zone of a log whose stamps name none, by the line that was received soonest behind its stamp."""

    def __init__(self) -> None:
        self._least_ns: int | None = None

    def unix_ns(self, stamp: LineStamp, received_unix_ns: int) -> int:
        """The stamp's Unix time."""
        if stamp.has_zone:
            return stamp.unix_ns
        behind_ns = received_unix_ns - stamp.unix_ns
        if self._least_ns is None or behind_ns < self._least_ns:
            self._least_ns = behind_ns
        # Down to a quarter: a stamp is never from the future (but for a clock that is a little ahead).
        return stamp.unix_ns + (self._least_ns + _AHEAD_NS) // _QUARTER_NS * _QUARTER_NS
