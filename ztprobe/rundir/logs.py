"""Containers' logs read as they grow: JSON events, one a line, among whatever else is printed there.

The one reader of such files, for the job (rounds as they end), for whoever follows a run from the
side, and for a finished log. kubelet puts its own words before each line
(``TIME STREAM TAG TEXT``, tag F for a whole line and P for a part); they are taken off.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ztprobe.documents.problem import shown
from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import WorkloadError

__all__ = ("KUBELET_WORDS", "GrowingLog", "last_words", "read_events")

Event = dict[str, Any]

# https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
KUBELET_WORDS = re.compile(rb"\d{4}-\d\d-\d\dT\S+ (?P<stream>stdout|stderr) (?P<tag>[FP])\S* ")
_LAST_LINES = 3


class GrowingLog:
    """A log and how far it has been read. It may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0
        self._part = b""  # of a line that kubelet has split

    def fresh(self) -> list[Event]:
        """The events of the whole lines since the last call; a half-written last line waits for the next.

        :raises WorkloadError: a line begins like an event and is none.
        """
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._read_bytes)
                text = stream.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return [event for line in whole.splitlines() if (event := self._event(line)) is not None]

    def _event(self, line: bytes) -> Event | None:
        if (words := KUBELET_WORDS.match(line)) is not None:
            self._part += line[words.end() :]
            if words["tag"] == b"P":
                return None
            line, self._part = self._part, b""
        if not line.startswith(b"{"):
            return None
        try:
            event = parse_json(line.decode(), not_finite_as_null=True)
        except ValueError as error:
            raise WorkloadError(f"{self.path.name}: not a JSON event: {shown(line)}") from error
        return event if "event" in event else None


def read_events(path: Path) -> list[Event]:
    """All events of a log; none if it does not exist. :raises WorkloadError: see `GrowingLog.fresh`."""
    return GrowingLog(path).fresh()


def last_words(log: Path) -> str:
    """The last lines that a container wrote, on one line, and where the rest is.

    :param log: of its standard output; standard error is beside it as ``.err``.
    """
    for file in (log.with_suffix(".err"), log):
        lines = file.read_text(errors="replace").splitlines() if file.exists() else []
        said = [line for line in lines if not line.startswith("{")]  # events are for the analysis
        if said:
            return f"{' | '.join(said[-_LAST_LINES:])} (see {file})"
    return f"it left no message (see {log})"
