"""One cgroup per container, on whichever layout the machine has.

Three layouts exist in the field: version 2 alone, version 1 with version 2 mounted
beside it (no controllers there, but membership works), and version 1 alone. A
container joins its cgroup in every hierarchy that we use: version 2 for membership,
and wherever the memory and CPU controllers are for limits. Limits that the layout
cannot express are reported, never silently dropped.

All our cgroups lie below one directory per run, directly under the root: a session's
own cgroup holds processes, and version 2 gives such a cgroup no children with limits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from ztprobe.errors import PreflightError

__all__ = ("Hierarchies", "Tree", "detect", "members", "remove")

_CPU_PERIOD_US = 100_000


@dataclass(frozen=True, kw_only=True)
class Hierarchies:
    """Where cgroup file systems are mounted; None: not there."""

    unified: Path | None  # version 2
    memory_v1: Path | None
    cpu_v1: Path | None

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every hierarchy in which a container has a cgroup."""
        found = [self.unified, self.memory_v1, self.cpu_v1]
        return tuple(dict.fromkeys(root for root in found if root is not None))

    @property
    def version(self) -> str:
        """``v2``, ``v1+v2`` or ``v1``."""
        if self.unified is None:
            return "v1"
        return "v2" if self.memory_v1 is None else "v1+v2"


def detect(mounts: Path = Path("/proc/self/mounts")) -> Hierarchies:
    """Find the mounted hierarchies.

    :raises PreflightError: there is none.
    """
    unified = memory = cpu = None
    for line in mounts.read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        controllers = options.split(",")
        if kind == "cgroup2":
            unified = unified or Path(where)
        elif kind == "cgroup" and "memory" in controllers:
            memory = memory or Path(where)
        elif kind == "cgroup" and "cpu" in controllers:
            cpu = cpu or Path(where)
    found = Hierarchies(unified=unified, memory_v1=memory, cpu_v1=cpu)
    if not found.roots:
        raise PreflightError("no cgroup file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")
    return found


class Tree:
    """The cgroups of one run: ``ROOT/NAME/POD/CONTAINER`` in every hierarchy."""

    def __init__(self, hierarchies: Hierarchies, name: str) -> None:
        self.hierarchies = hierarchies
        self.tops = tuple(root / name for root in hierarchies.roots)
        self.unavailable: set[str] = set()  # limits that this layout cannot express

    def controllers_to_enable(self) -> tuple[Path, list[str]] | None:
        """(root's cgroup.subtree_control, controllers it lacks) on version 2 alone, else None."""
        root = self.hierarchies.unified
        if root is None:
            return None
        wanted = [
            c
            for c, v1 in (("memory", self.hierarchies.memory_v1), ("cpu", self.hierarchies.cpu_v1))
            if not v1
        ]
        offered = (root / "cgroup.controllers").read_text().split()
        self.unavailable |= set(wanted) - set(offered)
        control = root / "cgroup.subtree_control"
        missing = [c for c in wanted if c in offered and c not in control.read_text().split()]
        return (control, missing) if missing else None

    def create(
        self, *path: str, memory_bytes: int | None = None, cpus: float | None = None
    ) -> tuple[Path, ...]:
        """Make the cgroup below the run's, with its limits.

        :returns: the ``cgroup.procs`` files to which a process that joins writes "0".
        :raises PreflightError: the file system refuses.
        """
        joins = []
        try:
            for top in self.tops:
                here = top
                here.mkdir(exist_ok=True)
                for part in path:
                    self._delegate(here)
                    here = here / part
                    here.mkdir(exist_ok=True)
                self._limit(here, memory_bytes, cpus)
                joins.append(here / "cgroup.procs")
        except OSError as error:
            raise PreflightError(f"cannot make cgroup {'/'.join(path)}: {error}") from error
        return tuple(joins)

    def _delegate(self, here: Path) -> None:
        # Version 2: a parent passes controllers on, one level at a time.
        control = here / "cgroup.subtree_control"
        if control.exists():
            for controller in (here / "cgroup.controllers").read_text().split():
                if controller in ("memory", "cpu"):
                    control.write_text(f"+{controller}")

    def _limit(self, here: Path, memory_bytes: int | None, cpus: float | None) -> None:
        quota_us = None if cpus is None else round(cpus * _CPU_PERIOD_US)
        for file, value in (
            ("memory.max", memory_bytes),
            ("memory.limit_in_bytes", memory_bytes),
            ("cpu.max", None if quota_us is None else f"{quota_us} {_CPU_PERIOD_US}"),
            ("cpu.cfs_quota_us", quota_us),
        ):
            if value is not None and (here / file).exists():
                (here / file).write_text(str(value))

    def members(self, *path: str) -> set[int]:
        """The processes in a container's cgroup now."""
        return members(self.tops[0].joinpath(*path))

    def oom_kills(self, *path: str) -> int:
        """How many of the container's processes the kernel killed for want of memory."""
        for top in self.tops:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    for line in (top.joinpath(*path) / name).read_text().splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
        return 0


def members(cgroup: Path) -> set[int]:
    """Processes in the cgroup itself, without its children; empty if it is gone."""
    try:
        return {int(line) for line in (cgroup / "cgroup.procs").read_text().split()}
    except OSError:
        return set()


def remove(top: Path, timeout_s: float = 5.0) -> bool:
    """Kill everything in the cgroup and below, then remove it; True if there was something.

    :raises OSError: processes would not die within ``timeout_s``.
    """
    if not top.is_dir():
        return False
    deadline = time.monotonic() + timeout_s
    while True:
        # Depth first, children before parents; a fork between two looks is caught by the next.
        below = [Path(directory) for directory, _, _ in os.walk(top, topdown=False)]
        busy = set().union(*(members(cgroup) for cgroup in below))
        for pid in busy - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            for cgroup in below:
                cgroup.rmdir()
            return True
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
