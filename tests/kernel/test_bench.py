"""What `make bench` relies on: empty programs that are counted, and nothing left behind by Ctrl-C."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from bench.floor import EMPTY_TC, empty_name, empty_programs, read_empty
from bench.startup import Watch
from tests.kernel.pods import TestPod
from tests.kernel.tcx import attached
from tests.programs import program
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.preflight.bpf import TCX_EGRESS

_DATAGRAMS = 23
_DISCARD_PORT = 9
_NETNS = Path("/run/netns")


def _send(a: TestPod, b: TestPod) -> None:
    with entered(a.netns):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(_DATAGRAMS):
            sender.sendto(b"x", (b.address, _DISCARD_PORT))


def _filters(pod: TestPod) -> list[str]:
    shown = ["tc", "filter", "show", "dev", "eth0", "egress"]
    with entered(pod.netns):
        lines = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if " handle " in line]


def test_empty_programs_run_beside_ours_and_are_gone_afterwards(pods: tuple[TestPod, TestPod]) -> None:
    with Watch(pods, statistics=True) as watch:
        with empty_programs(pods[0].netns, "eth0", ("sched_switch",)) as empty:
            _send(*pods)
            time.sleep(0.01)  # a switch
            read_empty(watch.kernel, empty)
            runs = {cost.program: (cost.run_count, cost.run_time_ns) for cost in empty}
            ours = {cost.program: cost.run_count for cost in watch.kernel.read_costs()}
        left = [*attached(pods[0].netns, "eth0", TCX_EGRESS), *_filters(pods[0])]
    assert _DATAGRAMS <= runs[EMPTY_TC][0] <= ours["tc_eth_out"]  # ours was there before
    assert min(count for count, _ in runs.values()) > 0
    assert all(0 < ns / count < 100_000 for count, ns in runs.values())
    assert empty_name("sched_switch") in runs
    assert not set(runs) & set(ours)
    assert len(left) == 1  # ours


def test_an_interrupted_benchmark_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    program("iperf3")
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "--quick", "--only", "startup", "--only", "throughput"]
    bench = subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=REPO_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ends = _iperf3_of(bench)
        namespaces = {Path(f"/proc/{end.pid}/ns/net").stat().st_ino for end in ends}
        assert namespaces <= {path.stat().st_ino for path in _NETNS.iterdir()}
        time.sleep(1.0)  # into the blocks
        bench.send_signal(signal.SIGINT)
        _, said = bench.communicate(timeout=20)
    finally:
        bench.kill()
        bench.wait()
    assert bench.returncode == 128 + signal.SIGINT
    assert "interrupted (SIGINT) in throughput" in said
    assert "Traceback" not in said
    assert not any(end.is_running() for end in ends)
    assert not namespaces & {path.stat().st_ino for path in _NETNS.iterdir() if path.exists()}
    # The part before is there, whole, and no half-written file beside it.
    assert '"startup_s"' in out.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def _iperf3_of(bench: subprocess.Popen[str]) -> list[psutil.Process]:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and bench.poll() is None:
        ends: list[psutil.Process] = []
        for child in psutil.Process(bench.pid).children():
            if child.name() == "iperf3":
                ends.append(child)
        if len(ends) == 2:
            return ends
        time.sleep(0.1)
    raise AssertionError(f"no iperf3 at work; status {bench.poll()}")
