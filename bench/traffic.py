"""Throughput over a pod's veth with and without probes, and short connections without a lost event."""

from __future__ import annotations

import contextlib
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
from ztprobe.netns import entered, inode
from ztprobe.probes.collector import Collector
from ztprobe.probes.kernel import KernelProbes

__all__ = ("Connections", "Throughput", "measure_connections", "measure_throughput")

_PORT = 5201
_WARM_UP_S, _SETTLE_S = 1.0, 0.4  # the latter outlasts a retransmission timer
_STALLED = 0.1
_ESTABLISHED = 1
_LISTEN = "0A"  # TCP_LISTEN, as /proc/net/tcp has it
_SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_BATCH = 20


@dataclass
class Throughput:
    """Every pair of blocks as (probed, unprobed): Gbit/s, and Gbit a CPU second of the busier end.

    The first is what a user sees, and on a machine with other things to do mostly what those left
    over; the second knows only what the path itself takes.
    """

    tool: str
    trials: list[tuple[float, float]]
    cpu_trials: list[tuple[float, float]]
    packet_bytes: float = 0.0  # mean, as the receiver's interface counts them
    stalled: int = 0  # pairs left out, because next to nothing moved in one of their blocks

    @property
    def ratio(self) -> Ratio | None:
        return paired_ratio(self.trials)

    @property
    def cpu_ratio(self) -> Ratio | None:
        return paired_ratio(self.cpu_trials)


def _send(address: str) -> None:
    client, block = socket.create_connection((address, _PORT)), bytes(1 << 17)
    while True:
        client.sendall(block)


def _receive(listener: socket.socket) -> None:
    connection, buffer = listener.accept()[0], bytearray(1 << 17)
    while connection.recv_into(buffer):
        pass


def _wait_for_listener(netns: Path) -> None:
    port, deadline_s = f":{_PORT:04X}", time.monotonic() + 10
    while time.monotonic() < deadline_s:
        with entered(netns):
            tables = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table.splitlines()]
        if any(row[1].endswith(port) and row[3] == _LISTEN for row in rows):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {_PORT}")


@contextlib.contextmanager
def _flow(pods: tuple[TestPod, TestPod]) -> Iterator[list[int]]:
    """One connection from A to B as fast as it goes, each end on a CPU of its own; yields both processes."""
    a, b = pods
    with contextlib.ExitStack() as stack:
        if shutil.which("iperf3"):
            ends = []
            for netns, end in ((b.netns, ["-s", "-1"]), (a.netns, ["-c", b.address, "-t", "3600"])):
                with entered(netns):
                    process = subprocess.Popen(["iperf3", "-p", str(_PORT), *end], **_SILENT)
                stack.callback(process.wait)
                stack.callback(process.terminate)
                ends.append(process.pid)
                if netns == b.netns:
                    _wait_for_listener(netns)
        else:  # two sockets of our own
            with entered(b.netns):
                listener = stack.enter_context(socket.create_server((b.address, _PORT)))
            ends = [stack.enter_context(_forked(b.netns, lambda: _receive(listener)))]
            ends.append(stack.enter_context(_forked(a.netns, lambda: _send(b.address))))
        cpus = sorted(os.sched_getaffinity(0))
        for end_pid, cpu in zip(ends, (cpus[-1], cpus[0]), strict=True):
            os.sched_setaffinity(end_pid, {cpu})  # or the scheduler's choice of places is most of the spread
        yield ends


def _received(pod: TestPod) -> tuple[int, int]:
    """Bytes and packets that the pod's interface has received."""
    with entered(pod.netns):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    (counts,) = (line.split(":")[1].split() for line in lines if line.strip().startswith("eth0:"))
    return int(counts[0]), int(counts[1])


def _cpu_ns(process: int) -> int:
    """CPU time of all its threads, the packets that they carried through the kernel included."""
    files = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files)


@contextlib.contextmanager
def _probed(kernel: KernelProbes, pods: tuple[TestPod, TestPod], processes: list[int]) -> Iterator[None]:
    """Programs that are loaded already, on their hooks, with the reader."""
    collector = Collector(kernel, {inode(pod.netns): pod.name for pod in pods})
    try:
        for pod in pods:
            kernel.trace_netns(inode(pod.netns))
        for process in processes:
            kernel.trace_process(process, proxy=False)
        kernel.attach()
        for pod in pods:
            kernel.attach_interface(pod.netns, "eth0")
        collector.start()
        yield
    finally:
        collector.stop()
        kernel.detach()


def measure_throughput(pods: tuple[TestPod, TestPod], pairs: int, seconds: float, seed: int) -> Throughput:
    """One connection all along, probed and unprobed for ``seconds`` in turn, each pair in random order."""
    draw, seen, kernel = random.Random(seed), [0, 0], KernelProbes()
    found = Throughput("iperf3" if shutil.which("iperf3") else "own sender", [], [])
    try:
        kernel.load()
        with _flow(pods) as processes:
            time.sleep(_WARM_UP_S)
            for _ in range(pairs):
                got: dict[bool, tuple[float, float]] = {}
                for probed in draw.sample((True, False), 2):
                    with _probed(kernel, pods, processes) if probed else contextlib.nullcontext():
                        time.sleep(_SETTLE_S)
                        started_s, before = time.monotonic(), _received(pods[1])
                        cpu_ns = [_cpu_ns(process) for process in processes]
                        time.sleep(seconds)
                        took_s, after = time.monotonic() - started_s, _received(pods[1])
                        busier_s = max(_cpu_ns(p) - ns for p, ns in zip(processes, cpu_ns, strict=True)) / 1e9
                    moved = [y - x for x, y in zip(before, after, strict=True)]
                    seen = [x + y for x, y in zip(seen, moved, strict=True)]
                    gbit = moved[0] * 8 / 1e9
                    got[probed] = (gbit / took_s, gbit / busier_s if busier_s else 0.0)
                if min(got.values()) < (_STALLED * max(got.values())[0],):
                    found.stalled += 1  # a lost packet costs 0.2 s, which says nothing of a path's cost
                    continue
                found.trials.append((got[True][0], got[False][0]))
                found.cpu_trials.append((got[True][1], got[False][1]))
    finally:
        kernel.close()
    if not found.trials:
        raise RuntimeError("nothing moved over the connection that throughput is measured with")
    found.packet_bytes = seen[0] / max(1, seen[1])
    return found


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
