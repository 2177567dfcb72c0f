"""The node's cgroup, in every hierarchy of the machine: all of its processes, and nobody else's."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from tools.kube_cluster.places import CGROUP, ClusterError

__all__ = ("end_processes", "hierarchies", "make", "own_services", "processes", "remove")

_SERVICES = "services"  # beside kubelet's "kubepods"
_POLL_S = 0.05


def hierarchies() -> list[Path]:
    """Where they are mounted: version 1's, and version 2's."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words, _, kind = line.partition(" - ")
        if kind.split()[0] in ("cgroup", "cgroup2"):
            found.append(Path(words.split()[4]))
    return found


def make() -> None:
    """Make it, and within it the one of the node's own services."""
    for hierarchy in hierarchies():
        for group in (hierarchy / CGROUP, hierarchy / CGROUP / _SERVICES):
            group.mkdir(exist_ok=True)
            # A cpuset of version 1 begins empty, and takes no process before it is filled.
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (hierarchy / "cpuset.sched_load_balance").exists():
                    (group / name).write_text((group.parent / name).read_text())


def own_services() -> list[Path]:
    """What a process of the node's services writes its id into."""
    return [hierarchy / CGROUP / _SERVICES / "cgroup.procs" for hierarchy in hierarchies()]


def processes() -> set[int]:
    """Those in it, of whatever hierarchy."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / CGROUP):
            with contextlib.suppress(OSError):  # it is removed meanwhile
                text = (Path(directory) / "cgroup.procs").read_text()
                found |= {int(word) for word in text.split()} - {0}
    return found


def end_processes(limit_s: float = 30.0) -> bool:
    """Kill all of them, and those that they start meanwhile.

    :returns: whether there were any.
    :raises ClusterError: some do not end.
    """
    until_s, were_any = time.monotonic() + limit_s, False
    while left := processes():
        were_any = True
        if time.monotonic() > until_s:
            raise ClusterError(f"processes do not end: {', '.join(map(str, sorted(left)))}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    return were_any


def remove(limit_s: float = 10.0) -> None:
    """Remove it with all below; nothing is in it any more.

    :raises ClusterError: the kernel does not let go of one.
    """
    until_s = time.monotonic() + limit_s
    for hierarchy in hierarchies():
        while (hierarchy / CGROUP).is_dir():
            try:
                for directory, _, _ in os.walk(hierarchy / CGROUP, topdown=False):
                    os.rmdir(directory)
            except OSError as error:  # a process that has just ended may still count
                if time.monotonic() > until_s:
                    raise ClusterError(f"{error.filename}: {error.strerror}") from error
                time.sleep(_POLL_S)
