"""Waiting for a CPU, against the account that the kernel gives in /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.kernel.watching import Watched

# More threads than CPUs, each on any of them, and none of them waiting for the interpreter's lock, which
# hashing gives back: a wait is long then. At the end every thread says what /proc says of it, and when.
_COMPETITION = """
import hashlib, os, sys, threading, time
sys.stdin.readline()
def run():
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3000)
        time.sleep(0.0003)
    before_ns = time.monotonic_ns()
    waited_ns = open("/proc/thread-self/schedstat").read().split()[1]
    told.append((threading.get_native_id(), waited_ns, before_ns, time.monotonic_ns()))
told = []
threads = [threading.Thread(target=run) for _ in range(3 * os.cpu_count())]
[t.start() for t in threads]
[t.join() for t in threads]
for line in told:
    print(*line)
"""


def test_waits_add_up_to_the_kernels_own_account(watched: Watched) -> None:
    began_ns = time.monotonic_ns()
    child = subprocess.Popen(
        [sys.executable, "-c", _COMPETITION], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    watched.kernel.trace_process(child.pid, proxy=False)
    told, _ = child.communicate("go\n", timeout=30)
    ended_ns = time.monotonic_ns()
    waits = watched.stop()["cpu_waits"]
    waits = waits[waits["tgid"] == child.pid]
    assert (waits["since_ns"] >= began_ns).all() and (waits["ts_ns"] <= ended_ns).all()
    truth = [tuple(map(int, line.split())) for line in told.splitlines()]
    assert len(truth) == 3 * (os.cpu_count() or 1)
    for tid, true_ns, before_ns, after_ns in truth:
        own = waits[waits["tid"] == tid]
        waited_ns = own["ts_ns"] - own["since_ns"]
        by_then_ns = int(waited_ns[own["ts_ns"] <= before_ns].sum())
        at_most_ns = int(waited_ns[own["ts_ns"] <= after_ns].sum())
        print(tid, true_ns, by_then_ns, at_most_ns)
        # Waits below 0.2 ms are not reported.
        assert 0.95 * true_ns <= at_most_ns
        assert by_then_ns <= 1.02 * true_ns + 2e6
