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
import os
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
        sequence, kind, rows = _said(path.name)
        return cls(path=path, sequence=sequence, kind=kind, rows=rows)


def _said(name: str) -> tuple[int, str, int]:
    sequence, kind, rows = name.removesuffix(SUFFIX).split(".")
    return int(sequence), kind, int(rows)


class Spool:
    """The reader's side of a queue."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def segments(self) -> list[QueueSegment]:
        """What has not been delivered yet, oldest first."""
        found = []
        with contextlib.suppress(FileNotFoundError):  # a stream asks for them several times a second
            for name in os.listdir(self._directory):
                if name.endswith(SUFFIX):
                    with contextlib.suppress(ValueError):
                        found.append(QueueSegment.of(self._directory / name))
        return sorted(found, key=lambda segment: segment.sequence)

    def queued(self) -> dict[str, Any]:
        """``segments``, ``rows`` and ``bytes`` that wait, and ``lost`` rows by kind."""
        segments = rows = size = 0
        # One by one: there may be very many, and whoever asks is to hold no more for that.
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                with contextlib.suppress(ValueError, FileNotFoundError):
                    if entry.name.endswith(SUFFIX):
                        here = _said(entry.name)[2]
                        size += entry.stat().st_size
                        segments, rows = segments + 1, rows + here
        return {"segments": segments, "rows": rows, "bytes": size, "lost": self.lost()}

    def lost(self) -> dict[str, int]:
        """Rows that found the queue full so far, by kind."""
        try:
            lost: dict[str, int] = json.loads((self._directory / LOST).read_text())
        except (OSError, ValueError):
            return {}
        return lost

    def forget(self, segment: QueueSegment) -> bool:
        """It has been delivered. False where it was forgotten before."""
        try:
            segment.path.unlink()
        except FileNotFoundError:
            return False
        return True
