"""From ring buffers to tables, with an account of everything that was lost on the way, and when.

A thread drains the rings in batches. Six channels can lose an event, and each is
counted by itself and ends up in every report:

- ``ring_buffer_full``: events that found their ring full;
- ``map_full``: insertions that found a map full, each the loss of what it would have kept,
  and send times that later data overwrote before they were asked for;
- ``recursion_missed``: runs that the kernel left out because the program was already
  running on that CPU (``bpf_prog_info.recursion_misses``; an upper bound for our events,
  since a tracepoint fires for the whole machine). Tracepoints count each such run
  (``__bpf_trace_run`` in kernel/trace/bpf_trace.c), kprobes only since Linux 6.7
  (``trace_call_bpf``). A kernel that is built to leave programs out for reasons of its own
  counts nothing, and nothing in it tells us;
- ``reader_behind``: drains at which a ring was more than 90 % full. Nothing is lost by
  that alone, but it warns of the first channel, so coverage does not count it;
- ``parse_failure``: packets of traced pods that the programs could not read (IPv6, IP
  options, fragments, headers cut short);
- ``unknown_pod``: events from a namespace that belongs to no known pod.

The counters are looked at with every drain (recursion misses with every tenth), so it is known
to within 50 ms (0.5 s) when something was lost, and the analysis can tell the rounds that it touched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ztprobe.events.layout import dtype_of
from ztprobe.events.tables import RINGS, TABLES, Names, decode, pairs_table
from ztprobe.probes.kallsyms import Kallsyms
from ztprobe.probes.kernel import KernelProbes
from ztprobe.probes.ring import Ring
from ztprobe.rundir.schema import LOSS_CHANNELS

__all__ = ("LOSS_CHANNELS", "Collector", "coverage")

# All records of a ring have the size of its first kind's.
_STRUCTS = {ring: TABLES[tables[0]].struct or "" for ring, tables in RINGS.items()}
# A look at the rings costs about half a millisecond of a busy machine. 12,000 connections a second,
# the highest rate we know, fill a ring in 0.25 s.
_CALM_PERIOD_S = 0.2
_BUSY_PERIOD_S = 0.05
_BUSY_FILL = 0.05
_BEHIND_FILL = 0.9
# The counters are a look into memory; what the kernel says of its programs takes a system call each.
_DRAINS_PER_RECURSION_LOOK = 10


class Collector:
    """start -> stop -> tables / loss / loss_log.

    :param pods: network namespace inode -> pod name.
    """

    def __init__(self, kernel: KernelProbes, pods: dict[int, str]) -> None:
        self._kernel = kernel
        self._pods = pods
        self._inodes = np.array([0, *pods], dtype=np.uint32)  # 0: events of a thread, not of a namespace
        self._rings = {
            name: Ring(kernel.map_fd(name), kernel.ring_size(name), dtype_of(struct_name))
            for name, struct_name in _STRUCTS.items()
        }
        self._batches: dict[str, list[np.ndarray]] = {name: [] for name in RINGS}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ring-reader", daemon=True)
        self._loss = dict.fromkeys(LOSS_CHANNELS, 0)
        self._counted: dict[str, int] = {}
        self._sampled_ns = time.monotonic_ns()
        self._drained_ns = self._recursion_ns = self._sampled_ns
        self._drains = 0
        # What was lost when: from_ns, to_ns (CLOCK_MONOTONIC), channel, count, and the ring if it was one.
        self.loss_log: list[dict[str, Any]] = []
        self.events_unread = 0
        self.cpu_ns = 0

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    def drain(self) -> int:
        """Empty the rings and look at the counters once, as the thread does. :returns: events read."""
        read = 0
        for name, ring in self._rings.items():
            ring.highest_fill = 0.0
            rows = ring.drain()
            if rows.size:
                self._keep(name, rows)
                read += rows.size
            if ring.highest_fill > _BEHIND_FILL:
                self._lost("reader_behind", 1, self._drained_ns, time.monotonic_ns(), ring=name)
        self._drained_ns = time.monotonic_ns()
        self._sample()
        return read

    def _keep(self, name: str, rows: np.ndarray) -> None:
        self._batches[name].append(rows)
        unknown = rows[~np.isin(rows["netns"], self._inodes)]
        if unknown.size:
            times = unknown["ts_ns"]
            self._lost("unknown_pod", unknown.size, int(times.min()), int(times.max()) + 1)

    def _sample(self) -> None:
        """Compare the kernel's counters with the last look at them."""
        before_ns = time.monotonic_ns()
        counted = self._kernel.counters()
        after_ns = time.monotonic_ns()
        new = {name: value - self._counted.get(name, 0) for name, value in counted.items()}
        for ring in RINGS:
            self._lost("ring_buffer_full", new[ring], self._sampled_ns, after_ns, ring=ring)
        self._lost("map_full", new["map_full"], self._sampled_ns, after_ns)
        self._lost("parse_failure", new["parse"] + new["ipv6"], self._sampled_ns, after_ns)
        self._counted, self._sampled_ns = counted, before_ns
        if self._stop.is_set() or self._drains % _DRAINS_PER_RECURSION_LOOK == 0:
            missed = self._kernel.recursion_missed() - self._loss["recursion_missed"]
            self._lost("recursion_missed", missed, self._recursion_ns, time.monotonic_ns())
            self._recursion_ns = before_ns
        self._drains += 1

    def _lost(self, channel: str, count: int, from_ns: int, to_ns: int, **more: str) -> None:
        if count:
            self._loss[channel] += count
            entry = {"from_ns": from_ns, "to_ns": to_ns, "channel": channel, "count": count}
            self.loss_log.append(entry | more)

    def _run(self) -> None:
        period_s = _BUSY_PERIOD_S
        while not self._stop.wait(period_s):
            self.drain()
            fill = max(ring.highest_fill for ring in self._rings.values())
            period_s = _BUSY_PERIOD_S if fill > _BUSY_FILL else _CALM_PERIOD_S
            self.cpu_ns = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID)

    def stop(self) -> None:
        """Stop the programs, drain what is left, add the bursts that are still open, unmap; idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._kernel.quiesce()
        while self.drain():
            pass
        self.events_unread = self._kernel.counters()["emitted"] - self.events_seen
        open_rows = self._kernel.open_bursts()
        if open_rows:
            rows = np.zeros(len(open_rows), dtype_of("burst"))
            for i, values in enumerate(open_rows):
                for name in rows.dtype.names or ():
                    rows[name][i] = values.get(name, 0)
            self._keep("bursts", rows)
        for ring in self._rings.values():
            ring.close()

    @property
    def events_seen(self) -> int:
        """Records that reached us."""
        return sum(batch.size for batches in self._batches.values() for batch in batches)

    def tables(self, processes: Mapping[int, str] | None = None) -> dict[str, pd.DataFrame]:
        """All that was seen, as the tables of `ztprobe.events.tables.TABLES`, each ordered by time.

        :param processes: process id -> pod/container.
        """
        names = Names(
            pods=self._pods,
            processes=processes or {},
            reasons=self._kernel.reason_names,
            symbol=Kallsyms().name_of,
        )
        tables: dict[str, pd.DataFrame] = {}
        for ring, batches in self._batches.items():
            rows = np.concatenate(batches or [np.empty(0, dtype_of(_STRUCTS[ring]))])
            tables |= decode(ring, rows, names)
        connections = tables["connections"]
        pod_of = dict(zip(connections["connection"].tolist(), connections["pod"].tolist(), strict=True))
        tables["pairs"] = pairs_table(self._kernel.pairs(), pod_of)
        return tables

    def loss(self) -> dict[str, int]:
        """Events lost per channel since the probes were loaded, as of the last drain."""
        return dict(self._loss)


def coverage(seen: int, loss: Mapping[str, int], *, unread: int = 0) -> float:
    """Events that reached us and can be placed over events that happened, 0..1.

    :param seen: events that reached us, those from unknown pods among them.
    :param unread: events that the kernel handed over and we do not have (none, unless we are wrong).
    """
    lost = unread + sum(count for channel, count in loss.items() if channel != "reader_behind")
    placed = seen - loss["unknown_pod"]
    return placed / (placed + lost) if placed + lost else 1.0
