"""The machine's processes, looked at again and again for little: what is known of one is read once.

A look lists ``/proc`` and reads what is new there. A process's command changes when it calls exec, which most
do right after they were forked, so the young ones are read again for a while.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ("OneProcess", "ProcessTable", "newest_pid")

_YOUNG_S = 2.0
_MOST_COMMAND_BYTES = 4096  # what is kept of a command line


@dataclass(frozen=True, kw_only=True)
class OneProcess:
    """A process; with its pid, the ticks at which it started are its identity."""

    pid: int
    started_ticks: int
    parent: int
    group: int
    session: int
    command: str  # arguments with spaces between them; of a kernel thread: empty
    cgroups: tuple[str, ...]
    netns_inode: int  # 0: it may not be looked at

    @property
    def program(self) -> str:
        """The name of what it runs, as its command line has it."""
        return self.command.partition(" ")[0].rpartition("/")[2]


def newest_pid(proc: Path = Path("/proc")) -> int:
    """The process or thread that began last on this machine; another one: something has begun since."""
    return int((proc / "loadavg").read_text().split()[-1])


class ProcessTable:
    """Every process by its pid, as of the last `look`."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: dict[int, OneProcess] = {}
        self._inodes: dict[int, int] = {}  # of the /proc entries: another one is another process
        self._since_s: dict[int, float] = {}

    def __getitem__(self, pid: int) -> OneProcess:
        return self._known[pid]

    def get(self, pid: int) -> OneProcess | None:
        """The process, if it is there."""
        return self._known.get(pid)

    def __iter__(self) -> Iterator[OneProcess]:
        return iter(self._known.values())

    def look(self, closely: Collection[int] = ()) -> None:
        """See who is there now.

        :param closely: pids that are read again: one that has ended keeps its entry as long as its parent
            does not ask how.
        """
        now_s = time.monotonic()
        inodes = {}
        with os.scandir(self._proc) as entries:
            for entry in entries:
                if entry.name.isdigit():
                    inodes[int(entry.name)] = entry.inode()
        for pid in self._known.keys() - inodes.keys():
            self._forget(pid)
        for pid, inode in inodes.items():
            is_new = self._inodes.get(pid) != inode
            if is_new or pid in closely or now_s - self._since_s[pid] < _YOUNG_S:
                found = self._read(pid)
                if found is None:
                    self._forget(pid)
                    continue
                before = self._known.get(pid)
                if before is None or before.started_ticks != found.started_ticks:
                    self._since_s[pid] = now_s
                self._known[pid], self._inodes[pid] = found, inode

    def ancestors(self, pid: int) -> Iterator[OneProcess]:
        """Parent, its parent and so on; as far as they are there."""
        seen = {pid}
        one = self._known.get(pid)
        while one is not None and (one := self._known.get(one.parent)) is not None and one.pid not in seen:
            seen.add(one.pid)
            yield one

    def _forget(self, pid: int) -> None:
        for table in (self._known, self._inodes, self._since_s):
            table.pop(pid, None)

    def _read(self, pid: int) -> OneProcess | None:
        process = self._proc / str(pid)
        netns_inode = 0
        try:
            fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] in ("Z", "X"):
                return None
            with (process / "cmdline").open("rb") as stream:
                command = stream.read(_MOST_COMMAND_BYTES)
            cgroups = (process / "cgroup").read_text(errors="replace").splitlines()
        except OSError:
            return None  # it has ended meanwhile
        with contextlib.suppress(OSError):
            netns_inode = os.stat(process / "ns/net").st_ino
        return OneProcess(
            pid=pid,
            started_ticks=int(fields[19]),
            parent=int(fields[1]),
            group=int(fields[2]),
            session=int(fields[3]),
            command=command.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace"),
            cgroups=tuple(dict.fromkeys(line.split(":", 2)[-1] for line in cgroups)),
            netns_inode=netns_inode,
        )
