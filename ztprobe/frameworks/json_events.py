"""Our own JSON events, one a line, among whatever else an application prints."""

from __future__ import annotations

import re

from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import WorkloadError
from ztprobe.frameworks.source import Event, RoundsFrom
from ztprobe.rundir.log_records import problem_in_record

__all__ = ("JsonEvents",)

# kubelet's words before each line; P: a part, F: a whole line or its last part.
_KUBELET = re.compile(rb"\d{4}-\d\d-\d\dT\S+ (?:stdout|stderr) (?P<tag>[FP])\S* ")
_BOUNDARIES = ("round_start", "round_end")


class JsonEvents:
    """`ztprobe.frameworks.source.RoundSource` of an application that logs its own clock."""

    kind = "events"

    def __init__(self) -> None:
        self._part = b""
        self._fresh: list[Event] = []
        self._seen = False

    def take(self, line: bytes, received_ns: int) -> None:
        """See `RoundSource`. :raises WorkloadError: it begins like an event and is none."""
        if (words := _KUBELET.match(line)) is not None:
            self._part += line[words.end() :]
            if words["tag"] == b"P":
                return
            line, self._part = self._part, b""
        if not line.startswith(b"{"):
            return
        try:
            event = parse_json(line.decode(), not_finite_as_null=True)
        except ValueError:
            return  # whatever else the application prints
        if not isinstance(event, dict) or "event" not in event:
            return
        if (problem := problem_in_record(event)) is not None:
            if event["event"] not in _BOUNDARIES:
                return  # an application's own kind of event
            raise WorkloadError(f"the events are none of ours: {event['event']}: {problem}")
        self._seen = True
        self._fresh.append(event)

    def fresh(self) -> list[Event]:
        """See `RoundSource`."""
        found, self._fresh = self._fresh, []
        return found

    @property
    def recognised(self) -> bool:
        """See `RoundSource`."""
        return self._seen

    def rounds_from(self) -> RoundsFrom:
        """See `RoundSource`."""
        return RoundsFrom(source="events", uncertainty_ns=0, detail="JSON events by the application's clock")
