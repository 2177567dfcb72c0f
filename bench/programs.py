"""What one run of each program costs, with and without something to say.

The kernel's statistics give a mean over all runs. Two kinds of traffic between bare pods, one in
which next to no run emits an event and one in which most do, and the number of events that each
program handed over in both, tell the two apart: time = runs without x cost + runs with x cost.

Rounds that compute show several times these costs at a switch of threads. What a model and its data
have pushed out of the caches by then, a program has to fetch: `measure_cold` has two threads take
turns on a CPU, each of which touches so much memory in between.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.emissions import emissions
from bench.floor import empty_programs, read_empty
from bench.startup import Watch
from tests.kernel.pods import TestPod
from ztprobe.kernelnet.netns import entered

__all__ = ("COLD_BYTES", "ProgramRuns", "measure_cold", "measure_programs", "split_costs")

_PORT, _CLOSED_PORT = 5301, 9
_ANSWER_BYTES, _BULK_BYTES = 1000, 1 << 16
_WORKERS = 3
_EMPTY_ON = ("sock_send_length", "sched_switch")  # tracepoints with an empty program beside ours
COLD_BYTES = (0, 1 << 20, 16 << 20)  # nothing, what a core's cache holds, more than its share of the last one
_LINE_BYTES = 64
Pods = tuple[TestPod, TestPod]


@dataclass(frozen=True)
class ProgramRuns:
    """One program under one workload."""

    runs: int
    time_ns: int
    events: int

    @property
    def emitting(self) -> int:
        """Runs that emitted; a run with two events counts once at most."""
        return min(self.runs, self.events)


def split_costs(observed: list[ProgramRuns]) -> tuple[float | None, float | None]:
    """Mean ns of runs without and with an event, by least squares; None where nothing tells them."""
    rows = [run for run in observed if run.runs >= 200]
    quiet = [run for run in rows if run.emitting <= 0.02 * run.runs]
    loud = [run for run in rows if run.emitting >= 0.2 * run.runs]
    if quiet and loud:
        shares = np.array([[1 - run.emitting / run.runs, run.emitting / run.runs] for run in quiet + loud])
        means = np.array([run.time_ns / run.runs for run in quiet + loud])
        without, with_one = np.linalg.lstsq(shares, means, rcond=None)[0]
        return float(without), float(with_one)
    if quiet:
        return sum(r.time_ns for r in quiet) / sum(r.runs for r in quiet), None
    loud = [run for run in loud if run.emitting >= 0.95 * run.runs]
    return None, sum(r.time_ns for r in loud) / sum(r.runs for r in loud) if loud else None


def _forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:  # whatever ends it: what is further up the stack is the parent's to undo
            with contextlib.suppress(OSError):
                work()
        finally:
            os._exit(0)
    return child


@contextlib.contextmanager
def _conversation(
    here: Path, there: Path, address: str, seconds: float, answered: bool
) -> Iterator[list[int]]:
    """A connection that carries bulk one way, or messages that are answered at once."""
    with entered(there):
        listener = socket.create_server((address, _PORT))
    size = _ANSWER_BYTES if answered else _BULK_BYTES

    def serve() -> None:
        connection, _ = listener.accept()
        while data := connection.recv(size, socket.MSG_WAITALL):
            if answered:
                connection.sendall(data)

    def call() -> None:
        with entered(here):
            caller = socket.create_connection((address, _PORT))
        end_s, data = time.monotonic() + seconds, bytes(size)
        while time.monotonic() < end_s:
            caller.sendall(data)
            if answered:
                caller.recv(size, socket.MSG_WAITALL)

    children = [_forked(serve), _forked(call)]
    listener.close()
    try:
        yield children
    finally:
        for child in children:
            os.waitpid(child, 0)


def _bulk(pods: Pods, watch: Watch, seconds: float, answered: bool) -> None:
    a, b = pods
    for here, there, address in ((a, b, b.address), (a, a, "127.0.0.1")):
        with _conversation(here.netns, there.netns, address, seconds / 2, answered) as children:
            for child in children:
                watch.kernel.trace_process(child, proxy=False)


def quiet(pods: Pods, watch: Watch, seconds: float) -> None:
    """Bulk data one way, over the pods' interfaces and over loopback."""
    _bulk(pods, watch, seconds, answered=False)


def loud(pods: Pods, watch: Watch, seconds: float) -> None:
    """Every packet closes the burst before it; connections are refused, datagrams dropped, threads wait."""
    a, b = pods
    _bulk(pods, watch, seconds / 2, answered=True)

    def knock() -> None:
        end_s = time.monotonic() + seconds / 4
        with entered(a.netns):
            while time.monotonic() < end_s:
                with socket.socket() as caller, contextlib.suppress(ConnectionRefusedError):
                    caller.connect((b.address, _CLOSED_PORT))
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"x", (b.address, _CLOSED_PORT))

    def compete() -> None:
        os.sched_setaffinity(0, {0})
        end_s = time.monotonic() + seconds / 4

        def work() -> None:
            while time.monotonic() < end_s:
                sum(range(50_000))

        threads = [threading.Thread(target=work) for _ in range(_WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for works in ([knock], [compete] * _WORKERS):
        children = [_forked(work) for work in works]
        try:
            for child in children:
                watch.kernel.trace_process(child, proxy=False)
        finally:
            for child in children:
                os.waitpid(child, 0)


def measure_programs(pods: Pods, seconds: float) -> dict[str, list[ProgramRuns]]:
    """Program -> what it did under `quiet` and under `loud`; each takes about ``seconds``."""
    sys.stdout.flush()
    observed: dict[str, list[ProgramRuns]] = {}
    for workload in (quiet, loud):
        with (
            Watch(pods, statistics=True) as watch,
            empty_programs(pods[0].netns, "eth0", _EMPTY_ON) as empty,
        ):
            workload(pods, watch, seconds)
            watch.collector.stop()
            events = emissions(watch.collector.tables())
            read_empty(watch.kernel, empty)
            for cost in [*watch.kernel.read_costs(), *empty]:
                runs = ProgramRuns(cost.run_count, cost.run_time_ns, events[cost.program])
                observed.setdefault(cost.program, []).append(runs)
    return observed


@contextlib.contextmanager
def _taking_turns(size: int) -> Iterator[list[int]]:
    """Two processes on one CPU that wake each other, having touched ``size`` bytes of their own."""
    cpu = max(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        pipes = [os.pipe(), os.pipe()]
        for fd in (fd for pipe in pipes for fd in pipe):
            stack.callback(os.close, fd)

        def take_turns(number: int) -> None:
            os.sched_setaffinity(0, {cpu})
            memory = np.zeros(max(size, _LINE_BYTES), np.uint8)
            while os.read(pipes[number][0], 1):
                if size:
                    memory[::_LINE_BYTES] += 1
                os.write(pipes[1 - number][1], b"x")

        children = []
        for number in range(2):
            child = _forked(functools.partial(take_turns, number))
            stack.callback(os.waitpid, child, 0)
            stack.callback(os.kill, child, signal.SIGKILL)
            children.append(child)
        os.write(pipes[0][1], b"x")
        yield children


def measure_cold(pods: Pods, seconds: float) -> dict[int, dict[str, ProgramRuns]]:
    """Bytes touched between two switches -> what the programs on sched_switch did meanwhile, events unknown.

    :param seconds: for each of `COLD_BYTES`.
    """
    sys.stdout.flush()
    found: dict[int, dict[str, ProgramRuns]] = {}
    with (
        Watch(pods, statistics=True) as watch,
        empty_programs(pods[0].netns, "eth0", ("sched_switch",)) as empty,
    ):

        def read() -> dict[str, tuple[int, int]]:
            read_empty(watch.kernel, empty)
            costs = [*watch.kernel.read_costs(), *empty]
            return {c.program: (c.run_count, c.run_time_ns) for c in costs if c.hook.endswith("sched_switch")}

        for size in COLD_BYTES:
            with _taking_turns(size) as children:
                for child in children:
                    watch.kernel.trace_process(child, proxy=False)
                time.sleep(0.2)
                before = read()
                time.sleep(seconds)
                after = read()
            found[size] = {
                name: ProgramRuns(after[name][0] - runs, after[name][1] - ns, 0)
                for name, (runs, ns) in before.items()
            }
    return found
