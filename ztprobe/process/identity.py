"""Which process it was: a pid with the time it started, because pids are reused."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ("ProcessIdentity", "started_ticks")


def started_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot: with the pid, its identity.

    :raises OSError: no such process.
    """
    # The second field is the command in parentheses and may contain anything.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process of this machine, alive or not."""

    pid: int
    started_ticks: int

    @classmethod
    def own(cls) -> ProcessIdentity:
        """This process."""
        return cls(pid=os.getpid(), started_ticks=started_ticks(os.getpid()))

    @property
    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return int(text[19]) == self.started_ticks and text[0] not in ("Z", "X")
