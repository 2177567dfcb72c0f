"""Waiting for a CPU, against the account that the kernel gives in /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.kernel.watching import Watched

# More threads than CPUs, each on any of them; at the end every thread says what /proc says of it.
_COMPETITION = """
import os, sys, threading, time
sys.stdin.readline()
def run():
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        sum(range(60_000))
        time.sleep(0.0003)
    told.append((threading.get_native_id(), open("/proc/thread-self/schedstat").read().split()[1]))
told = []
threads = [threading.Thread(target=run) for _ in range(3 * os.cpu_count())]
[t.start() for t in threads]
[t.join() for t in threads]
for tid, waited_ns in told:
    print(tid, waited_ns)
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
    seen_ns = (waits["ts_ns"] - waits["since_ns"]).groupby(waits["tid"]).sum()
    truth_ns = {int(tid): int(waited) for tid, waited in (line.split() for line in told.splitlines())}
    assert len(truth_ns) == 3 * (os.cpu_count() or 1)
    for tid, true_ns in truth_ns.items():
        print(tid, true_ns, seen_ns.get(tid, 0))
        # Waits below 0.2 ms are not reported; a thread's last look at /proc comes before it ends.
        assert 0.85 * true_ns <= seen_ns.get(tid, 0) <= 1.02 * true_ns + 2e6
