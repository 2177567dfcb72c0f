"""Foreign CPU time read another way: added up from every other process, where ztprobe subtracts.

`/proc/PID/stat` has a process's own time and that of the children it waited for, so the sum over all
processes that are not the trace's keeps what lived only briefly. It is in ticks of 10 ms, so runs can
be judged by it, single moments cannot.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

__all__ = ("ForeignReader",)

_PERIOD_S = 1.0
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PF_KTHREAD = 0x00200000


class ForeignReader:
    """A context manager: reads while it is open.

    :param trace: the pid of ``ztprobe trace``, which and whose descendants are not foreign.
    """

    def __init__(self, trace: int) -> None:
        self._trace = trace
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._looks: list[tuple[int, int]] = []  # CLOCK_MONOTONIC, cumulative
        self._stolen: list[tuple[int, int]] = []  # likewise
        self._last: dict[int, int] = {}
        self._total_ns = 0
        self._ours: set[int] = {trace}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def share(self, spans: Sequence[tuple[int, int]]) -> float:
        """Foreign CPU time within the spans over the machine's, 0..1."""
        return _share_within(self._looks, spans)

    def stolen_share(self, spans: Sequence[tuple[int, int]]) -> float:
        """What the hypervisor took within the spans, likewise."""
        return _share_within(self._stolen, spans)

    def _run(self) -> None:
        while True:
            self._look()
            if self._ended.wait(_PERIOD_S):
                self._look()
                return

    def _look(self) -> None:
        at_ns = time.monotonic_ns()
        self._stolen.append((at_ns, _TICK_NS * int(Path("/proc/stat").read_text().split("\n")[0].split()[8])))
        parents: dict[int, int] = {}
        ticks: dict[int, int] = {}
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError, IndexError):
                    fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
                    if not int(fields[6]) & _PF_KTHREAD:
                        parents[int(name)] = int(fields[1])
                        ticks[int(name)] = sum(map(int, fields[11:15]))
        for pid in parents:
            line = [pid]
            while (parent := parents.get(line[-1], 0)) > 1 and line[-1] not in self._ours:
                line.append(parent)
            if line[-1] in self._ours:
                self._ours.update(line)
        foreign = {pid: count for pid, count in ticks.items() if pid not in self._ours}
        if self._looks:
            # A process that went away is in its parent's account; one that is new had its own before.
            self._total_ns += _TICK_NS * (sum(foreign.values()) - sum(self._last.values()))
        self._last = foreign
        self._looks.append((at_ns, max(self._total_ns, self._looks[-1][1] if self._looks else 0)))


def _share_within(looks: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> float:
    assert looks[0][0] <= min(spans)[0] and max(spans)[1] <= looks[-1][0], "the reader was not there"
    times_ns, values_ns = zip(*looks, strict=True)
    inside_ns = sum(float(np.diff(np.interp(span, times_ns, values_ns))[0]) for span in spans)
    return inside_ns / sum(end - begin for begin, end in spans) / (os.cpu_count() or 1)
