"""Which process it was: a pid with the time it started, because pids are reused."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ("MachineProcess", "ProcessIdentity", "boot_id", "started_ticks")


def boot_id() -> str:
    """Of this kernel since it was booted: whoever shares it (containers that pose as nodes) has the same."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


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


@dataclass(frozen=True, kw_only=True)
class MachineProcess:
    """A process of whichever machine."""

    boot_id: str
    pid_namespace: int  # inode of the one that the pid is of
    pid: int
    started_ticks: int

    @classmethod
    def own(cls) -> MachineProcess:
        """This process."""
        own = ProcessIdentity.own()
        return cls(
            boot_id=boot_id(),
            pid_namespace=os.stat("/proc/self/ns/pid").st_ino,
            pid=own.pid,
            started_ticks=own.started_ticks,
        )

    @property
    def is_here(self) -> bool:
        """Whether it runs under this kernel, and its pid is what we call it."""
        here = self.boot_id, self.pid_namespace
        if here != (boot_id(), os.stat("/proc/self/ns/pid").st_ino):
            return False
        return ProcessIdentity(pid=self.pid, started_ticks=self.started_ticks).alive
