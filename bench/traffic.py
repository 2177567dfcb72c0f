"""Throughput over a pod's veth with and without probes, and short connections without a lost event."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.spread import Ratio, paired_ratio
from bench.startup import Watch
from tests.kernel.pods import TestPod
from ztprobe.events import Direction, PacketKind, PointKind
from ztprobe.netns import entered

__all__ = ("Connections", "Throughput", "measure_connections", "measure_throughput")

_PORT = 5201
_ESTABLISHED = 1
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_BATCH = 20


@dataclass
class Throughput:
    """Gbit/s of every trial, by arm."""

    tool: str
    trials: list[tuple[float, float]]  # (probed, unprobed)

    @property
    def ratio(self) -> Ratio | None:
        return paired_ratio(self.trials)


def _iperf3(pods: tuple[TestPod, TestPod], seconds: float) -> float:
    a, b = pods
    with entered(b.netns):
        server = subprocess.Popen(["iperf3", "-s", "-1", "-p", str(_PORT)], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.2)
        with entered(a.netns):
            command = ["iperf3", "-c", b.address, "-p", str(_PORT), "-t", f"{seconds:.0f}", "-J"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
    finally:
        server.terminate()
        server.wait()


def _sender(pods: tuple[TestPod, TestPod], seconds: float) -> float:
    """The same with two sockets of our own, where iperf3 is not installed."""
    a, b = pods
    with entered(b.netns):
        listener = socket.create_server((b.address, _PORT))
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError), entered(a.netns):
            client = socket.create_connection((b.address, _PORT))
            until_s, block = time.monotonic() + seconds, bytes(1 << 17)
            while time.monotonic() < until_s:
                client.sendall(block)
        os._exit(0)
    connection, _ = listener.accept()
    received_bytes, started_s, buffer = 0, time.monotonic(), bytearray(1 << 17)
    while count := connection.recv_into(buffer):
        received_bytes += count
    took_s = time.monotonic() - started_s
    os.waitpid(child, 0)
    connection.close()
    listener.close()
    return received_bytes * 8 / took_s / 1e9


def measure_throughput(pods: tuple[TestPod, TestPod], pairs: int, seconds: float, seed: int) -> Throughput:
    """One TCP connection as fast as it goes, probed and unprobed in turn, each pair in random order."""
    run: Callable[[tuple[TestPod, TestPod], float], float] = _iperf3 if shutil.which("iperf3") else _sender
    draw, trials = random.Random(seed), []
    run(pods, 1.0)
    for _ in range(pairs):
        got: dict[bool, float] = {}
        for probed in draw.sample((True, False), 2):
            with Watch(pods) if probed else contextlib.nullcontext():
                got[probed] = run(pods, seconds)
        trials.append((got[True], got[False]))
    return Throughput("iperf3" if run is _iperf3 else "own sender", trials)


@dataclass
class Connections:
    """A flood of short connections: what the kernel counted and what the probes saw."""

    seconds: float
    opened: int  # TCP ActiveOpens of the connecting pod
    accepted: int  # TCP PassiveOpens of the other
    retransmitted: int  # both pods: a repeated SYN or SYN-ACK would be one more event than connections
    seen: dict[str, int]
    loss: dict[str, int]
    events: int

    @property
    def rate(self) -> float:
        """Connections a second."""
        return self.opened / self.seconds

    @property
    def missing(self) -> int:
        """Connections without one of the events that each of them must have."""
        truth = {"syn": self.opened, "client_established": self.opened, "server_established": self.accepted}
        return sum(abs(count - self.seen[name]) for name, count in truth.items())


def _tcp_counters(netns: Path) -> dict[str, int]:
    with entered(netns):
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
    names, values = (line for line in lines if line[0] == "Tcp:")
    return {name: int(value) for name, value in zip(names[1:], values[1:], strict=True)}


def _serve(address: str, port: int) -> None:
    listener = socket.create_server((address, port), backlog=4096, reuse_port=True)
    while True:
        accepted, _ = listener.accept()
        accepted.close()


def _connect(address: str, port: int, seconds: float, rate: float) -> None:
    peer = (address, port)
    started_s = time.monotonic()
    done = 0
    while (now_s := time.monotonic()) - started_s < seconds:
        if done > (now_s - started_s) * rate:
            time.sleep(0.0005)
            continue
        for _ in range(_BATCH):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.connect(peer)
            sock.close()
        done += _BATCH


@contextlib.contextmanager
def _forked(netns: Path, target: Callable[[], None]) -> Iterator[int]:
    child = os.fork()
    if child == 0:
        try:
            with entered(netns):
                target()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def measure_connections(pods: tuple[TestPod, TestPod], seconds: float, rate: float) -> Connections:
    """Open and reset connections at up to ``rate`` a second."""
    a, b = pods
    with contextlib.ExitStack() as stack:
        stack.enter_context(_forked(b.netns, lambda: _serve(b.address, _PORT)))
        time.sleep(0.3)
        before = [_tcp_counters(pod.netns) for pod in pods]
        watch = stack.enter_context(Watch(pods))
        started_s = time.monotonic()
        client = stack.enter_context(_forked(a.netns, lambda: _connect(b.address, _PORT, seconds, rate)))
        os.waitpid(client, 0)
        took_s = time.monotonic() - started_s
        time.sleep(0.3)
        after = [_tcp_counters(pod.netns) for pod in pods]
        watch.collector.stop()
        tables, loss = watch.collector.tables(), watch.collector.loss()
        events = watch.collector.events_seen
    packets, points = tables["packets"], tables["points"]
    syns = packets[(packets["kind"] == PacketKind.SETUP) & (packets["flags"] & 18 == 2)]
    up = points[(points["kind"] == PointKind.STATE) & (points["b"] == _ESTABLISHED)]
    return Connections(
        seconds=took_s,
        opened=after[0]["ActiveOpens"] - before[0]["ActiveOpens"],
        accepted=after[1]["PassiveOpens"] - before[1]["PassiveOpens"],
        retransmitted=sum(x["RetransSegs"] - y["RetransSegs"] for x, y in zip(after, before, strict=True)),
        seen={
            "syn": int(((syns["pod"] == a.name) & (syns["dir"] == Direction.TX)).sum()),
            "client_established": int((up["pod"] == a.name).sum()),
            "server_established": int((up["pod"] == b.name).sum()),
        },
        loss=loss,
        events=events,
    )
