"""Round events as JSON lines, which an application prints itself: the most exact source there is.

    {"event": "round_start", "round": 1, "time_unix_ns": 1795862410460604432,
     "time_monotonic_ns": 12592730627858}                                          (on one line)

Where a line has one clock only, the other is worked out by this machine's offset; where it has none, it is
the moment at which the line was received.
"""

from __future__ import annotations

import time
from typing import Any

from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import WorkloadError
from ztprobe.frameworks.source import Event, RoundsFrom
from ztprobe.frameworks.stamps import without_prefix

__all__ = ("JsonEvents",)

_ANYWHERE = 1 << 63  # ns: more than any clock shows


class JsonEvents:
    """A RoundSource of our own events."""

    kind = "events"

    def __init__(self, read_every_ns: int = 0) -> None:
        """:param read_every_ns: how often the source is looked at, which lines without a clock depend on."""
        self._read_every_ns = read_every_ns
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._fresh: list[Event] = []
        self._recognised = False
        self._received = False

    def take(self, line: bytes, received_ns: int) -> None:
        """See `RoundSource.take`. :raises WorkloadError: it is an event without a usable round."""
        text, _ = without_prefix(line.decode("utf-8", errors="replace").strip(), 1970)
        if not text.startswith("{"):
            return
        try:
            record = parse_json(text, not_finite_as_null=True)
        except ValueError:
            return  # other programs print braces, too
        if not isinstance(record, dict) or not isinstance(record.get("event"), str):
            return
        number = record.get("round", 0)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise WorkloadError(
                'an event\'s round is no whole number from 0 on, expected {"event": ..., "round": 1, ...}'
            )
        self._recognised = True
        self._fresh.append(self._timed({**record, "round": number}, received_ns))

    def _timed(self, record: dict[str, Any], received_ns: int) -> Event:
        unix_ns, monotonic_ns = _time(record, "time_unix_ns"), _time(record, "time_monotonic_ns")
        time_from = "log"
        if monotonic_ns is None:
            if unix_ns is None:
                monotonic_ns, time_from, self._received = received_ns, "received", True
            else:
                monotonic_ns = unix_ns - self._offset_ns
        if unix_ns is None:
            unix_ns = monotonic_ns + self._offset_ns
        uncertainty_ns = self._read_every_ns if time_from == "received" else 0
        times = {"time_unix_ns": unix_ns, "time_monotonic_ns": monotonic_ns}
        return {**record, **times, "time_from": time_from, "uncertainty_ns": uncertainty_ns}

    def fresh(self) -> list[Event]:
        """See `RoundSource.fresh`."""
        events, self._fresh = self._fresh, []
        return sorted(events, key=lambda event: event["time_monotonic_ns"])

    @property
    def recognised(self) -> bool:
        """See `RoundSource.recognised`."""
        return self._recognised

    def rounds_from(self) -> RoundsFrom:
        """See `RoundSource.rounds_from`."""
        if self._received:
            detail = "events of the application, by when each was received: they carry no time"
            return RoundsFrom(source="events", uncertainty_ns=self._read_every_ns, detail=detail)
        return RoundsFrom(source="events", uncertainty_ns=0, detail="events of the application, by its clock")


def _time(record: dict[str, Any], name: str) -> int | None:
    value = record.get(name)
    is_time = isinstance(value, int) and not isinstance(value, bool) and 0 < value < _ANYWHERE
    return value if is_time else None
