"""What a deployment's processes run and have loaded: the evidence for `ztprobe.frameworks.detection`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ztprobe.frameworks.detection import ProcessFacts, framework_of
from ztprobe.frameworks.source import Framework
from ztprobe.pods.process_table import OneProcess

__all__ = ("Evidence",)

_PACKAGES = ("site-packages", "dist-packages")
_MOST_MAPS_BYTES = 4 << 20


class Evidence:
    """What was seen of processes, kept after they have ended."""

    def __init__(self) -> None:
        self._facts: dict[int, ProcessFacts] = {}
        self._installed: dict[Path, list[str]] = {}

    def take(self, processes: Iterable[OneProcess]) -> None:
        """Look at those that are new, or run another program by now."""
        for process in processes:
            known = self._facts.get(process.pid)
            if known is None or known.command != process.command:
                files = _files(process.pid)
                self._facts[process.pid] = ProcessFacts(pid=process.pid, command=process.command, files=files)
                for place in {_packages(process.pid, file) for file in files} - {None}:
                    if place is not None and place not in self._installed:
                        with contextlib.suppress(OSError):
                            self._installed[place] = [
                                name for name in os.listdir(place) if name.endswith(".dist-info")
                            ]

    def framework(self, heads: Iterable[bytes] = ()) -> Framework:
        """What all of it tells. :param heads: the first bytes of payloads."""
        installed = [name for names in self._installed.values() for name in names]
        return framework_of(self._facts.values(), heads, installed)


def _files(pid: int) -> frozenset[str]:
    """What a process maps; none if it has ended."""
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as stream:
            lines = stream.read(_MOST_MAPS_BYTES).splitlines()
    except OSError:
        return frozenset()
    return frozenset(path for line in lines if (path := line[73:].strip()).startswith("/"))


def _packages(pid: int, file: str) -> Path | None:
    """The directory of installed packages that a file is below, as the process sees it."""
    parts = Path(file).parts
    for name in _PACKAGES:
        if name in parts:
            inside = Path(*parts[: parts.index(name) + 1])
            return Path(f"/proc/{pid}/root") / inside.relative_to("/")
    return None
