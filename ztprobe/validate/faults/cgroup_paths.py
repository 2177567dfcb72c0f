"""Where a process's cgroups are, in whichever layout the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ("cgroups_of",)


def cgroups_of(pid: int) -> Iterator[Path]:
    """The process's cgroup in each hierarchy that is mounted."""
    mounted: dict[str, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            mounted[""] = Path(where)
        elif kind == "cgroup":
            mounted |= {option: Path(where) for option in options.split(",")}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = mounted.get(controllers.split(",")[0])
        if root is not None:
            yield root / path.lstrip("/")
