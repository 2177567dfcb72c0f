"""Throughput over a pod's veth with and without probes.

What is estimated: how much an iperf3 connection moves with all probes attached, over what it moves
without, both ends on one CPU. There the scheduler puts them by itself most of the time, it is
where they move most, and whatever the programs take is missing from the transfer: nothing hides
in an idle CPU. Tried on two cores, and why the rest is as it is:

- BBR, this kernel's default, lets a connection idle for 0.2 s every 10 s (PROBE_RTT: blocks of 1
  among blocks of 18 Gbit/s). Pods run cubic; so does this.
- On a CPU each, packets of one connection take two ways: sent by the sender, or by an
  acknowledgement that arrives on the other CPU. They overtake each other there (67,000 needless
  retransmissions in 6 s, undone by DSACKs; no packet was lost). With less under way that ends, but
  throughput still jumps between 10, 22 and 35 Gbit/s, whatever is attached and with the sender's CPU
  always busy: waking an idle virtual CPU costs the one that wakes it more than the packet. Steering
  each direction to one CPU (RPS) halves throughput for the same reason.
- On one CPU a connection moves 17 or 35 Gbit/s, and changes between the two within seconds: more
  lies in its buffers (up to tcp_rmem's 32 MB) than a cache holds, ksoftirqd takes a part, and which of
  it happens depends on how wake-ups fall. With at most 1 MB under way (tcp_wmem of the
  sender's namespace) it is 35 every time, and nothing is sent again. A small receive buffer instead
  overflows, which costs timeouts.

Blocks alternate as A B B A or B A A B by lot, so that what drifts hits both; a cycle gives one ratio.
A cycle is left out if in any of its blocks both ends together had less than nine tenths of their
CPU (somebody else ran there), or a timer of TCP's fired, whichever arm it was; how many is printed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.spread import Ratio, paired_ratio
from bench.traffic import forked, tcp_counters
from tests.kernel.pods import TestPod
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.probes.collector import Collector
from ztprobe.probes.kernel import KernelProbes

__all__ = ("Block", "Throughput", "measure_throughput", "orders")

_PORT = 5201
_WARM_UP_S, _SETTLE_S = 1.5, 0.1
_LEAST_CPU = 0.9  # of the one that both ends share; the reader, which is part of the cost, takes 0.01
_CONGESTION_CONTROL = "cubic"
_UNDER_WAY_BYTES = 1 << 20
_AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_LISTEN = "0A"  # TCP_LISTEN, as /proc/net/tcp has it
_SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
Pods = tuple[TestPod, TestPod]


@dataclass(frozen=True, kw_only=True)
class Block:
    """What moved in one stretch of time."""

    cycle: int
    probed: bool
    seconds: float
    received_bytes: int
    packets: int  # of the receiver's interface
    cpu_s: float  # of both ends, with the packets that they carried through the kernel
    retransmitted: int  # segments, by the sender's counter
    timeouts: int  # likewise

    @property
    def gbit(self) -> float:
        """Gbit/s."""
        return self.received_bytes * 8 / 1e9 / self.seconds

    @property
    def gbit_a_cpu_s(self) -> float:
        """Gbit that a CPU second moved: knows nothing of what others left over."""
        return self.received_bytes * 8 / 1e9 / self.cpu_s if self.cpu_s else 0.0

    @property
    def disturbed(self) -> bool:
        """Something else than the path decided what moved."""
        return self.cpu_s < _LEAST_CPU * self.seconds or self.timeouts > 0


@dataclass
class Throughput:
    """All blocks, in the order of measuring."""

    tool: str
    blocks: list[Block] = field(default_factory=list)

    def cycles(self) -> list[list[Block]]:
        """Blocks by cycle, of cycles that nothing disturbed."""
        numbers = sorted({block.cycle for block in self.blocks})
        cycles = [[b for b in self.blocks if b.cycle == number] for number in numbers]
        return [blocks for blocks in cycles if not any(b.disturbed for b in blocks)]

    @property
    def left_out(self) -> int:
        """Cycles that something disturbed."""
        return len({block.cycle for block in self.blocks}) - len(self.cycles())

    def gbits(self, probed: bool) -> list[float]:
        """Gbit/s of one arm's blocks."""
        return [b.gbit for blocks in self.cycles() for b in blocks if b.probed is probed]

    @property
    def ratio(self) -> Ratio | None:
        """Probed over unprobed by the clock: what a user sees."""
        return self._ratio(lambda block: block.gbit)

    @property
    def cpu_ratio(self) -> Ratio | None:
        """Probed over unprobed by CPU time."""
        return self._ratio(lambda block: block.gbit_a_cpu_s)

    def _ratio(self, of: Callable[[Block], float]) -> Ratio | None:
        return paired_ratio(
            [
                (sum(of(b) for b in blocks if b.probed), sum(of(b) for b in blocks if not b.probed))
                for blocks in self.cycles()
            ]
        )


def orders(cycles: int, seed: int) -> list[tuple[bool, bool, bool, bool]]:
    """Whether each block of each cycle is probed."""
    draw = random.Random(seed)
    return [(a, not a, not a, a) for a in draw.choices((True, False), k=cycles)]


def _congestion_control() -> str | None:
    return _CONGESTION_CONTROL if _CONGESTION_CONTROL in _AVAILABLE.read_text().split() else None


def _send(address: str) -> None:
    client, block = socket.socket(), bytes(1 << 17)
    if chosen := _congestion_control():
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, chosen.encode())
    client.connect((address, _PORT))
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
def _flow(pods: Pods, seconds: int) -> Iterator[list[int]]:
    """One connection from A to B as fast as it goes, for so long at most; yields both processes."""
    a, b = pods
    with entered(a.netns):
        Path("/proc/sys/net/ipv4/tcp_wmem").write_text(f"4096 16384 {_UNDER_WAY_BYTES}")
    with contextlib.ExitStack() as stack:
        if shutil.which("iperf3"):
            ends = []
            chosen = _congestion_control()
            client = ["-c", b.address, "-t", str(seconds)]
            client += ["-C", chosen] if chosen else []
            for netns, end in ((b.netns, ["-s", "-1"]), (a.netns, client)):
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
            ends = [stack.enter_context(forked(b.netns, lambda: _receive(listener)))]
            ends.append(stack.enter_context(forked(a.netns, lambda: _send(b.address))))
        cpu = max(os.sched_getaffinity(0))
        time.sleep(_WARM_UP_S / 2)  # iperf3 starts a thread for the connection
        for end_pid in ends:
            for thread in Path(f"/proc/{end_pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {cpu})
        time.sleep(_WARM_UP_S / 2)
        yield ends


def _received(pod: TestPod) -> tuple[int, int]:
    """Bytes and packets that the pod's interface has received."""
    with entered(pod.netns):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    (counts,) = (line.split(":")[1].split() for line in lines if line.strip().startswith("eth0:"))
    return int(counts[0]), int(counts[1])


def _cpu_ns(process: int) -> int:
    files = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files)


@contextlib.contextmanager
def _probed(kernel: KernelProbes, pods: Pods, processes: list[int]) -> Iterator[None]:
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


def _block(pods: Pods, processes: list[int], seconds: float, cycle: int, probed: bool) -> Block:
    def state() -> tuple[int, ...]:
        now_ns, tcp = time.monotonic_ns(), tcp_counters(pods[0].netns)
        cpu_ns = sum(map(_cpu_ns, processes))
        return (now_ns, *_received(pods[1]), cpu_ns, tcp["RetransSegs"], tcp["TCPTimeouts"])

    before = state()
    time.sleep(seconds)
    took_ns, moved, packets, cpu_ns, again, timers = (y - x for x, y in zip(before, state(), strict=True))
    return Block(
        cycle=cycle,
        probed=probed,
        seconds=took_ns / 1e9,
        received_bytes=moved,
        packets=packets,
        cpu_s=cpu_ns / 1e9,
        retransmitted=again,
        timeouts=timers,
    )


def measure_throughput(
    pods: Pods, cycles: int, seconds: float, seed: int, advance: Callable[[int], None]
) -> Throughput:
    """One connection all along; cycles of four blocks of ``seconds``, two probed and two not.

    :param advance: is called with 1 after each cycle.
    :raises RuntimeError: nothing moved, or no cycle was left undisturbed.
    """
    kernel = KernelProbes()
    found = Throughput("iperf3" if shutil.which("iperf3") else "own sender")
    limit_s = int(60 + cycles * 4 * (seconds + 1))  # whatever becomes of us, the connection ends
    try:
        kernel.load()
        with _flow(pods, limit_s) as processes, contextlib.ExitStack() as active:
            now_probed = False
            for cycle, order in enumerate(orders(cycles, seed)):
                for probed in order:
                    if probed is not now_probed:
                        active.close()
                        if probed:
                            active.enter_context(_probed(kernel, pods, processes))
                        now_probed = probed
                        time.sleep(_SETTLE_S)
                    found.blocks.append(_block(pods, processes, seconds, cycle, probed))
                advance(1)
    finally:
        kernel.close()
    if not any(block.received_bytes for block in found.blocks):
        raise RuntimeError("nothing moved over the connection that throughput is measured with")
    if not found.cycles():
        raise RuntimeError("throughput: others took the CPU in every cycle; try again on a quieter machine")
    return found
