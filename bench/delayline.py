"""The delay line where netem is missing: how much it moves, and how late it lets packets go.

One pod's egress is held for 10 ms; four connections send through it, GSO packets kept whole. How
late a packet is, beyond what is asked and what the bare path takes, is told by the receiving
kernel's time stamps, once with nothing else going on and once beside those four connections.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass

from tests.kernel.bridged import Node, bridged_node, delays_ms
from ztprobe.emulation.delay_line.node import NodeQueue, QueuedPod
from ztprobe.kernelnet.netns import entered
from ztprobe.profile.model import Profile
from ztprobe.rundir.temporary import scratch

__all__ = ("DelayLine", "measure_delay_line")

_DELAY_MS, _FLOWS, _PORT = 10.0, 4, 5202
_PROBES, _GAP_S = 400, 0.003


@dataclass(frozen=True)
class DelayLine:
    """Gbit/s per trial, and packets' lateness in ms."""

    flows: int
    bare_gbit: list[float]
    delayed_gbit: list[float]
    idle_late_ms: list[float]
    loaded_late_ms: list[float]


def _throughput_gbit(node: Node, seconds: float) -> float:
    a, b = node.pods
    with entered(b.netns):
        command = ["iperf3", "-s", "-1", "-p", str(_PORT)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.3)
        command = [
            "iperf3",
            "-c",
            b.address,
            "-p",
            str(_PORT),
            "-t",
            f"{seconds:.0f}",
            "-P",
            str(_FLOWS),
            "-J",
        ]
        with entered(a.netns):
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30)
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
    finally:
        server.terminate()
        server.wait()


def measure_delay_line(trials: int, seconds: float) -> DelayLine:
    """Both figures on a node of two pods. :raises RuntimeError: iperf3 is not installed."""
    if not shutil.which("iperf3"):
        raise RuntimeError("iperf3 sends through the delay line: apt-get install iperf3")
    with bridged_node() as node, scratch() as directory:
        a, b = node.pods
        path_ms = statistics.median(delays_ms(a, b, 101, 0.002))
        bare = [_throughput_gbit(node, seconds) for _ in range(trials)]
        profile = Profile(name="bench", delay_ms=_DELAY_MS)
        queue = NodeQueue(profile, [QueuedPod(name=a.name, address=a.address)], node.netns, directory, 1)
        try:
            queue.start()

            def late_ms() -> list[float]:
                return [delay - path_ms - _DELAY_MS for delay in delays_ms(a, b, _PROBES, _GAP_S)]

            idle = late_ms()
            delayed = [_throughput_gbit(node, seconds) for _ in range(trials)]
            loaded: list[float] = []

            def press() -> None:
                with contextlib.suppress(subprocess.SubprocessError):  # Ctrl-C reaches iperf3 as well
                    _throughput_gbit(node, _PROBES * _GAP_S + 2)

            load = threading.Thread(target=press)
            load.start()
            try:
                time.sleep(1.0)
                loaded = late_ms()
            finally:
                load.join()
        finally:
            queue.stop()
    return DelayLine(_FLOWS, bare, delayed, idle, loaded)
