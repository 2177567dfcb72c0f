"""Waiting for a CPU, against the account that the kernel gives in /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.kernel.watching import Watched

_TELLING = """
import hashlib, os, sys, threading, time
told = []
def tell():
    before_ns = time.monotonic_ns()
    _, waited_ns, times = open("/proc/thread-self/schedstat").read().split()
    told.append((threading.get_native_id(), waited_ns, times, before_ns, time.monotonic_ns()))
def together(*works):
    threads = [threading.Thread(target=work) for work in works]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for line in told:
        print(*line)
sys.stdin.readline()
end = time.monotonic() + 1.0
"""
# More threads than CPUs, each on any of them, and none of them waiting for the interpreter's lock, which
# hashing gives back: a wait is long then. At the end every thread says what /proc says of it, and when.
_LONG = """
def run():
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3000)
        time.sleep(0.0003)
    tell()
together(*[run] * 3 * os.cpu_count())
"""
# One thread computes, and another pushes it aside on the same CPU every half millisecond, for 0.05 ms.
_SHORT = """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
def compute():
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 30000)
    tell()
def push():
    while time.monotonic() < end:
        time.sleep(0.0005)
        until_ns = time.perf_counter_ns() + 50_000
        while time.perf_counter_ns() < until_ns:
            pass
    tell()
together(compute, push)
"""


@pytest.mark.parametrize("work", [pytest.param(_LONG, id="long"), pytest.param(_SHORT, id="short")])
def test_waits_add_up_to_the_kernels_own_account(watched: Watched, work: str) -> None:
    began_ns = time.monotonic_ns()
    child = subprocess.Popen(
        [sys.executable, "-c", _TELLING + work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    watched.kernel.trace_process(child.pid, proxy=False)
    told, _ = child.communicate("go\n", timeout=30)
    ended_ns = time.monotonic_ns()
    waits = watched.stop()["cpu_waits"]
    waits = waits[waits["tgid"] == child.pid]
    assert (waits["since_ns"] >= began_ns).all() and (waits["ts_ns"] <= ended_ns).all()
    truth = [tuple(map(int, line.split())) for line in told.splitlines()]
    assert len(truth) == (2 if work is _SHORT else 3 * (os.cpu_count() or 1))
    for tid, true_ns, times, before_ns, after_ns in truth:
        own = waits[waits["tid"] == tid].sort_values("ts_ns")
        waited_ns = own["ts_ns"] - own["since_ns"]
        by_then_ns = int(waited_ns[own["ts_ns"] <= before_ns].sum())
        at_most_ns = int(waited_ns[own["ts_ns"] <= after_ns].sum())
        print(tid, true_ns, times, len(own), by_then_ns, at_most_ns)
        # What is below 0.2 ms altogether is told with the next wait.
        assert 0.99 * true_ns - 0.2e6 <= at_most_ns
        assert by_then_ns <= 1.02 * true_ns + 2e6
        assert (own["since_ns"].to_numpy()[1:] >= own["ts_ns"].to_numpy()[:-1]).all()
    if work is _SHORT:
        assert any(2 * (waits["tid"] == tid).sum() < times for tid, _, times, _, _ in truth)
