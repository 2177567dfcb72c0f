"""From ring buffers to tables, with an account of everything that was lost on the way.

A thread drains the three rings in batches. Six things can lose an event, and each
has a counter of its own that ends up in every report: a ring that was full, a map
that was full, a program that the kernel did not run because it was running
already, a reader that fell behind, a packet or record that could not be parsed,
and an event from a namespace that belongs to no known pod.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ztprobe.events import dtype_of, pairs_table, table_of
from ztprobe.probes.kernel import KernelProbes
from ztprobe.probes.ring import Ring

__all__ = ("LOSS_CHANNELS", "Collector")

LOSS_CHANNELS = (
    "ring_buffer_full",
    "map_full",
    "recursion_missed",
    "reader_behind",
    "parse_failure",
    "unknown_pod",
)

_RINGS = {"bursts": "burst", "packets": "packet", "points": "point"}
# Half a ring's worth of events at the highest rate we know fits into this many periods.
_DRAIN_PERIOD_S = 0.05
_BEHIND_FILL = 0.9


class Collector:
    """start -> stop -> tables / loss.

    :param pods: network namespace inode -> pod name.
    """

    def __init__(self, kernel: KernelProbes, pods: dict[int, str]) -> None:
        self._kernel = kernel
        self._pods = pods
        self._rings = {
            name: Ring(kernel.ring_fd(name), kernel.ring_bytes, dtype_of(struct_name))
            for name, struct_name in _RINGS.items()
        }
        self._batches: dict[str, list[np.ndarray]] = {name: [] for name in _RINGS}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ring-reader", daemon=True)
        self._reader_behind = 0
        self.cpu_ns = 0

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    def _drain(self) -> None:
        for name, ring in self._rings.items():
            ring.highest_fill = 0.0
            rows = ring.drain()
            if rows.size:
                self._batches[name].append(rows)
            if ring.highest_fill > _BEHIND_FILL:
                self._reader_behind += 1

    def _run(self) -> None:
        while not self._stop.wait(_DRAIN_PERIOD_S):
            self._drain()
            self.cpu_ns = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID)

    def stop(self) -> None:
        """Drain what is left, add the bursts that are still open, and unmap; idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._drain()
        open_rows = self._kernel.open_bursts()
        if open_rows:
            rows = np.zeros(len(open_rows), dtype_of("burst"))
            for i, values in enumerate(open_rows):
                for name in rows.dtype.names or ():
                    rows[name][i] = values.get(name, 0)
            self._batches["bursts"].append(rows)
        for ring in self._rings.values():
            ring.close()

    @property
    def events_seen(self) -> int:
        """Records that reached us."""
        return sum(batch.size for batches in self._batches.values() for batch in batches)

    def tables(self) -> dict[str, pd.DataFrame]:
        """bursts, packets, points and pairs as tables, ordered by time."""
        tables = {}
        for name, struct_name in _RINGS.items():
            batches = self._batches[name] or [np.empty(0, dtype_of(struct_name))]
            tables[name] = table_of(struct_name, np.concatenate(batches), self._pods)
        tables["pairs"] = pairs_table(self._kernel.pairs(), self._pods)
        return tables

    def loss(self, tables: dict[str, pd.DataFrame]) -> dict[str, int]:
        """Events lost per channel since the probes were loaded."""
        bursts, packets, points, map_full, parse, ipv6, _ = self._kernel.counters()
        unknown = 0
        for name in ("bursts", "packets", "points"):
            table = tables[name]
            unknown += int(((table["pod"] == "") & (table["netns"] != 0)).sum())
        return {
            "ring_buffer_full": bursts + packets + points,
            "map_full": map_full,
            "recursion_missed": sum(cost.recursion_missed for cost in self._kernel.read_costs()),
            "reader_behind": self._reader_behind,
            "parse_failure": parse + ipv6,
            "unknown_pod": unknown,
        }


def coverage(seen: int, loss: dict[str, int], channels: Sequence[str] = LOSS_CHANNELS) -> float:
    """Events that reached us over events that happened, 0..1 (a full reader alone loses nothing)."""
    lost = sum(loss[name] for name in channels if name != "reader_behind")
    return seen / (seen + lost) if seen + lost else 1.0
