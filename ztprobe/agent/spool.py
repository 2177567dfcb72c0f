"""An agent's events on their way to a collector on another machine: a queue on disk with a bound.

``SEQUENCE.KIND.ROWS.arrow`` holds one batch of one kind, as an Arrow IPC stream of one record batch whose
columns are the members of the kind's struct; ``SEQUENCE.names.0.arrow`` has no rows and says, in its
schema's metadata, what the numbers in the batches before it stand for; ``SEQUENCE.end.0.arrow`` is the last
of these. One process writes (`ztprobe.agent.spool_sink`), another reads and deletes what has been delivered,
without a look into it. What finds the queue full is counted, kind by kind, and ``lost.json`` says so while
the run goes on.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ("END", "LOST", "NAMES", "SUFFIX", "QueueSegment", "Spool")

NAMES, END = "names", "end"
LOST = "lost.json"
SUFFIX = ".arrow"


@dataclass(frozen=True, kw_only=True)
class QueueSegment:
    """One file of the queue: a message."""

    path: Path
    sequence: int
    kind: str
    rows: int

    @classmethod
    def of(cls, path: Path) -> QueueSegment:
        """By its name. :raises ValueError: it is none."""
        sequence, kind, rows = path.name.removesuffix(SUFFIX).split(".")
        return cls(path=path, sequence=int(sequence), kind=kind, rows=int(rows))


class Spool:
    """The reader's side of a queue."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def segments(self) -> list[QueueSegment]:
        """What has not been delivered yet, oldest first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.glob(f"*{SUFFIX}"):
                with contextlib.suppress(ValueError):
                    found.append(QueueSegment.of(path))
        return sorted(found, key=lambda segment: segment.sequence)

    def queued(self) -> dict[str, Any]:
        """``segments``, ``rows`` and ``bytes`` that wait, and ``lost`` rows by kind."""
        waiting = self.segments()
        size = 0
        for segment in waiting:
            with contextlib.suppress(FileNotFoundError):
                size += segment.path.stat().st_size
        rows = sum(segment.rows for segment in waiting)
        return {"segments": len(waiting), "rows": rows, "bytes": size, "lost": self.lost()}

    def lost(self) -> dict[str, int]:
        """Rows that found the queue full so far, by kind."""
        try:
            lost: dict[str, int] = json.loads((self._directory / LOST).read_text())
        except (OSError, ValueError):
            return {}
        return lost

    def delivered_until(self, sequence: int) -> None:
        """Everything up to this one has arrived: forget it."""
        for segment in self.segments():
            if segment.sequence > sequence:
                return
            segment.path.unlink(missing_ok=True)
