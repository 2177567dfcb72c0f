"""What processes have done so far: CPU time, and bytes through their network namespaces' interfaces."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Activity", "activity_of")

_LOOPBACK = "lo"


@dataclass(frozen=True)
class Activity:
    """Totals since the processes began; a process that has ended is not in them any more."""

    cpu_s: float
    network_bytes: int  # received and sent, the loopback left out


def activity_of(pids: Iterable[int]) -> Activity:
    """The activity of these processes; one that has ended meanwhile counts nothing."""
    ticks, by_namespace = 0, dict[int, int]()
    for pid in pids:
        process = Path(f"/proc/{pid}")
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            namespace = os.stat(process / "ns/net").st_ino
            lines = (process / "net/dev").read_text().splitlines()[2:]
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
        counters = (line.split() for line in lines if not line.strip().startswith(f"{_LOOPBACK}:"))
        by_namespace[namespace] = sum(int(words[1]) + int(words[9]) for words in counters)
    return Activity(ticks / os.sysconf("SC_CLK_TCK"), sum(by_namespace.values()))
