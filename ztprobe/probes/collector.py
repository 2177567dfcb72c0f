"""From ring buffers to tables, with an account of everything that was lost on the way, and when.

A thread drains the rings in batches. Seven channels can lose an event, and each is
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
- ``unknown_pod``: events from a namespace that belongs to no known pod;
- ``queue_full``: events that reached us and found no room in the queue to a collector on another
  machine (`ztprobe.agent.spool`); an agent that writes to a run directory has none.

The counters are looked at with every drain (recursion misses with every tenth), so it is known
to within 50 ms (0.5 s) when something was lost, and the analysis can tell the rounds that it touched.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ztprobe.events.layout import dtype_of
from ztprobe.events.tables import RINGS, Names, decode, pairs_table, ring_type
from ztprobe.probes.kallsyms import Kallsyms
from ztprobe.probes.kernel import KernelProbes
from ztprobe.probes.ring import Ring
from ztprobe.rundir.schema import LOSS_CHANNELS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("LOSS_CHANNELS", "Collector", "coverage")

# A look at the rings costs about half a millisecond of a busy machine. 12,000 connections a second,
# the highest rate we know, fill a ring in 0.25 s.
_CALM_PERIOD_S = 0.2
_BUSY_PERIOD_S = 0.05
_BUSY_FILL = 0.05
_BEHIND_FILL = 0.9
_MOST_PLACES = 4096  # a kernel has some hundred that drop packets
# The counters are a look into memory; what the kernel says of its programs takes a system call each.
_DRAINS_PER_RECURSION_LOOK = 10


class Collector:
    """start -> stop -> loss / loss_log.

    :param pods: network namespace inode -> pod name.
    :param write: is given the records of a ring as they come, from the collector's thread; None: they are
        kept, for `tables`.
    """

    def __init__(
        self,
        kernel: KernelProbes,
        pods: Mapping[int, str],
        write: Callable[[str, np.ndarray], None] | None = None,
    ) -> None:
        self._kernel = kernel
        self._kept: dict[str, list[np.ndarray]] = {name: [] for name in RINGS}
        self._write = write or (lambda name, rows: self._kept[name].append(rows))
        self._draining = threading.Lock()
        self.know(pods)
        self._rings = {
            name: Ring(kernel.map_fd(name), kernel.ring_size(name), ring_type(name)) for name in RINGS
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ring-reader", daemon=True)
        self._loss = dict.fromkeys(LOSS_CHANNELS, 0)
        self._counted: dict[str, int] = {}
        self._sampled_ns = time.monotonic_ns()
        self._drained_ns = self._recursion_ns = self._sampled_ns
        self._drains = 0
        # What was lost when: from_ns, to_ns (CLOCK_MONOTONIC), channel, count, and the ring if it was one.
        self.loss_log: list[dict[str, Any]] = []
        self.drop_places: set[int] = set()  # addresses in the kernel at which packets were dropped
        self.failure: str | None = None  # what keeps records from being handed on
        self.events_seen = 0  # records that reached us
        self.events_unread = 0
        self.cpu_ns = 0

    def know(self, pods: Mapping[int, str]) -> None:
        """These are the pods from now on."""
        self._pods = dict(pods)
        # 0: events of a thread, not of a namespace
        self._inodes = np.array(sorted({0, *pods}), dtype=np.uint32)

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    def drain(self) -> int:
        """Empty the rings and look at the counters once, as the thread does. :returns: events read."""
        with self._draining:
            return self._drain()

    @contextlib.contextmanager
    def drained(self) -> Iterator[None]:
        """All that is in the rings has been handed on, and nothing more is until the end of the body."""
        with self._draining:
            self._drain()
            yield

    def _drain(self) -> int:
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
        self.events_seen += rows.size
        self._write(name, rows)
        if name == "drops" and len(self.drop_places) < _MOST_PLACES:
            self.drop_places.update(rows["location"].tolist())
        # np.isin would take twenty times as long for a batch of the usual size.
        places = np.searchsorted(self._inodes, rows["netns"]).clip(max=self._inodes.size - 1)
        unknown = rows[self._inodes[places] != rows["netns"]]
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
            try:
                self.drain()
            except Exception as error:  # a full disk, a connection that broke
                self.failure = str(error) or type(error).__name__
                return
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
        self._keep_open("bursts", "burst", self._kernel.open_bursts())
        self._keep_open("points", "turn", self._kernel.open_turns())
        self._keep_open("points", "module_load", self._kernel.open_loads())
        for ring in self._rings.values():
            ring.close()

    def _keep_open(self, ring: str, struct: str, values: Sequence[Mapping[str, int]]) -> None:
        if not values:
            return
        rows = np.zeros(len(values), dtype_of(struct))
        for i, row in enumerate(values):
            for name in row.keys() & set(rows.dtype.names or ()):
                rows[name][i] = row[name]
        self._keep(ring, rows.view(ring_type(ring)))

    def tables(self, processes: Mapping[int, str] | None = None) -> dict[str, pd.DataFrame]:
        """What was kept, as the tables of `ztprobe.events.tables.TABLES`, each ordered by time.

        :param processes: process id -> pod/container.
        """
        names = Names(
            pods=self._pods,
            processes=processes or {},
            reasons=self._kernel.reason_names,
            symbol=Kallsyms().name_of,
        )
        tables: dict[str, pd.DataFrame] = {}
        for ring, batches in self._kept.items():
            tables |= decode(ring, np.concatenate(batches or [np.empty(0, ring_type(ring))]), names)
        connections = tables["connections"]
        pod_of = dict(zip(connections["connection"].tolist(), connections["pod"].tolist(), strict=True))
        tables["pairs"] = pairs_table(self._kernel.pairs(), pod_of)
        return tables

    def loss(self) -> dict[str, int]:
        """Events lost per channel since the probes were loaded, as of the last drain."""
        return dict(self._loss)


def coverage(seen: int, loss: Mapping[str, int], *, unread: int = 0) -> float:
    """Events that reached us and can be placed over events that happened, 0..1.

    :param seen: events that reached us, those from unknown pods and those that a queue lost among them.
    :param unread: events that the kernel handed over and we do not have (none, unless we are wrong).
    """
    lost = unread + sum(count for channel, count in loss.items() if channel != "reader_behind")
    placed = seen - loss["unknown_pod"] - loss.get("queue_full", 0)
    return placed / (placed + lost) if placed + lost else 1.0
