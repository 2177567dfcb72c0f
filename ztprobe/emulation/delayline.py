"""The userspace delay line: one process that holds the packets of a node's profiled pods.

``python -m ztprobe.emulation.delayline CONFIG.json`` binds one NFQUEUE per pod inside the
node's network namespace, prints ``ready`` and then gives every packet its verdict when its
time has come. It stands on the node's forward path, between the sender's tc egress and the
receiver's tc ingress, where a held packet no longer counts against its socket's small-queue
limit.

Like netem, every packet gets its own draw, so jitter reorders; unlike netem, ARP is not
affected. Delay runs from the device's receive time stamp where the kernel gives one, so being
scheduled late costs accuracy only for packets that are already due. Loss is a verdict.
Pending packets are integers in a heap: ``due [us] << 26 | pod << 20 | packet id mod 2**20``.

The process ends with SIGTERM, or with its parent. It watches a pidfd of the parent, because
PR_SET_PDEATHSIG fires as soon as the *thread* that started us ends. The rules say
``--queue-bypass``, so without it traffic flows undelayed; what was held is dropped.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import heapq
import json
import math
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ztprobe import netns
from ztprobe.emulation.nfqueue import ACCEPT, DROP, Packet, QueueSocket

__all__ = ("MAX_PENDING", "MAX_PODS", "Config", "DelayLine", "ErrorHistogram", "Verdicts", "main", "to_json")

_ID_BITS, _POD_BITS = 20, 6
MAX_PENDING = 1 << _ID_BITS  # per pod: ids are kept modulo this
MAX_PODS = 1 << _POD_BITS
_ID_MASK = MAX_PENDING - 1
_KEY_BITS = _ID_BITS + _POD_BITS
_RELEASE_CHUNK = 128  # verdicts per send: about 1 ms of delivery, then arrivals get their turn
# What is due within the horizon leaves with the rest: errors of either sign, small against
# 0.2 ms, and a fraction of the wake-ups. Timers come late by some tens of microseconds, more on
# virtual machines; the loop learns how late and sets them that much early.
_HORIZON_NS = 50_000
_MAX_EARLY_NS = 150_000
_OLDEST_NS = 2_000_000_000  # no packet waits longer than this to be read
_NAP_NS = 500_000  # longest that an arrival waits to be read
_STATS_EVERY_NS = 1_000_000_000
_SAMPLE_SCALE = 8192
_PRIORITY = 2  # above the probing threads (1), which are busy where it is mostly asleep
_NICE = -10  # where real-time scheduling is refused
_PR_SET_TIMERSLACK = 29


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the parent asks for; travels as JSON."""

    netns: str
    pods: dict[str, int]  # pod name -> queue number
    delay_ns: int
    jitter_ns: int
    distribution: str  # none | uniform | normal
    loss_probability: float
    max_packets: int  # per queue
    seed: int
    stats_path: str
    parent_pid: int
    # by which the delay is drawn instead: delay + jitter * sample / 8192
    samples: list[int] = field(default_factory=list)
    delay_correlation: float = 0.0
    loss_states: list[float] | None = None  # Gilbert-Elliott: good to bad, bad to good, lost in bad, in good
    reorder_probability: float = 0.0


class Verdicts(Protocol):
    """What the delay line needs of a `QueueSocket`."""

    verdict_errors: int

    def verdict(self, packets: Iterable[tuple[int, int]], verdict: int) -> None:
        """Give each (queue number, packet id) its verdict."""

    def accept_up_to(self, packets: Iterable[tuple[int, int]]) -> None:
        """Accept everything up to each id."""


class ErrorHistogram:
    """|release - due| in bins of 10 us up to 20 ms: a median and a p99 at no memory.

    Plain Python, because nearly every batch is a handful of packets.
    """

    BIN_US, BINS = 10, 2000

    def __init__(self) -> None:
        self.counts = [0] * self.BINS
        self.max_us = 0

    def add(self, errors_us: list[int]) -> None:
        """Count a batch (microseconds, negative: early)."""
        for error_us in map(abs, errors_us):
            self.counts[min(error_us // self.BIN_US, self.BINS - 1)] += 1
            self.max_us = max(self.max_us, error_us)

    def quantile_us(self, q: float) -> float | None:
        """The middle of the bin that holds the quantile, microseconds; None: nothing counted."""
        rank = q * sum(self.counts)
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return (index + 0.5) * self.BIN_US
        return None


class DelayLine:
    """The pending packets and what becomes of them; the socket is its only way out."""

    def __init__(self, config: Config, queue: Verdicts) -> None:
        if len(config.pods) > MAX_PODS:
            raise ValueError(f"at most {MAX_PODS} pods a delay line, got {len(config.pods)}")
        self.config = config
        self.errors = ErrorHistogram()
        self.packets = [0] * len(config.pods)
        self.dropped = [0] * len(config.pods)
        self._queue = queue
        self._numbers = list(config.pods.values())
        self._pod_of = {number: index for index, number in enumerate(self._numbers)}
        self._last_id = [0] * len(config.pods)
        self._heap: list[int] = []
        self._random = random.Random(config.seed)
        # Of every pod its own: the last draw (standard normal), and whether its path is in the bad state.
        self._last_draw = [0.0] * len(config.pods)
        self._bad = [False] * len(config.pods)
        self._in_order = not (config.jitter_ns or config.reorder_probability)
        self._zero_ns = time.monotonic_ns()
        self._ascending = sorted(config.samples)
        self.scheduling = "normal"

    @property
    def pending(self) -> int:
        """Packets held now."""
        return len(self._heap)

    @property
    def next_due_ns(self) -> int | None:
        """CLOCK_MONOTONIC of the next release; None: nothing is held."""
        return (self._heap[0] >> _KEY_BITS) * 1000 + self._zero_ns if self._heap else None

    @property
    def shortest_ns(self) -> int:
        """A delay that hardly any draw falls below (4 sigma)."""
        if self.config.reorder_probability:
            return 0
        return self.config.delay_ns - 4 * self.config.jitter_ns

    def draw_ns(self, pod: int = 0) -> int:
        """One packet's delay, never negative, as netem draws it.

        Correlated draws keep their distribution: a normal variable that remembers its predecessor
        picks the quantile. (netem's own correlation does not survive its table.)
        """
        delay, jitter = self.config.delay_ns, self.config.jitter_ns
        if self.config.reorder_probability and self._random.random() < self.config.reorder_probability:
            return 0
        if not jitter:
            return delay
        if self.config.delay_correlation:
            return max(0, delay + int(jitter * self._correlated(pod)))
        if self.config.samples:
            return max(0, delay + jitter * self._random.choice(self.config.samples) // _SAMPLE_SCALE)
        if self.config.distribution == "uniform":
            return max(0, delay + int(jitter * self._random.uniform(-1.0, 1.0)))
        return max(0, int(self._random.gauss(delay, jitter)))

    def _correlated(self, pod: int) -> float:
        rho = self.config.delay_correlation
        draw = rho * self._last_draw[pod] + math.sqrt(1 - rho * rho) * self._random.gauss(0.0, 1.0)
        self._last_draw[pod] = draw
        if self.config.distribution == "normal":
            return draw
        quantile = (1 + math.erf(draw / math.sqrt(2))) / 2
        if self.config.distribution == "uniform":
            return 2 * quantile - 1
        samples = self._ascending
        return samples[min(int(quantile * len(samples)), len(samples) - 1)] / _SAMPLE_SCALE

    def _lost(self, pod: int) -> bool:
        states = self.config.loss_states
        draw = self._random.random
        if states is None:
            return draw() < self.config.loss_probability
        self._bad[pod] ^= draw() < states[self._bad[pod]]
        return draw() < (states[2] if self._bad[pod] else states[3])

    def take(self, packets: list[Packet], now_ns: int, unix_to_monotonic_ns: int) -> None:
        """Decide loss, and when each of the others is due.

        :param now_ns: CLOCK_MONOTONIC at which they were read, used where a stamp is missing or
            implausible (a stepped wall clock must not hold or rush packets).
        """
        may_lose = bool(self.config.loss_probability or self.config.loss_states)
        lost = []
        for number, packet, unix_ns in packets:
            pod = self._pod_of[number]
            self.packets[pod] += 1
            self._last_id[pod] = packet
            if may_lose and self._lost(pod):
                self.dropped[pod] += 1
                lost.append((number, packet))
                continue
            arrived_ns = unix_ns + unix_to_monotonic_ns
            if not unix_ns or not now_ns - _OLDEST_NS < arrived_ns <= now_ns:
                arrived_ns = now_ns
            due_us = max(0, arrived_ns + self.draw_ns(pod) - self._zero_ns) // 1000
            heapq.heappush(self._heap, due_us << _KEY_BITS | pod << _ID_BITS | packet & _ID_MASK)
        if lost:
            self._queue.verdict(lost, DROP)

    def release(self, until_ns: int) -> bool:
        """Let go what is due until then (CLOCK_MONOTONIC), one chunk at most; True: there may be more."""
        heap, pop = self._heap, heapq.heappop
        limit = ((until_ns - self._zero_ns) // 1000 + 1) << _KEY_BITS
        keys: list[int] = []
        while heap and heap[0] < limit and len(keys) < _RELEASE_CHUNK:
            keys.append(pop(heap))
        if not keys:
            return False
        packets = []
        for key in keys:
            pod = key >> _ID_BITS & (MAX_PODS - 1)
            last = self._last_id[pod]
            packets.append((self._numbers[pod], last - ((last - key) & _ID_MASK)))
        before_ns = time.monotonic_ns()
        if self._in_order:
            # Of every queue the newest stands for all before it. Stamps of several CPUs may be out
            # of order by microseconds, so it need not be the last one here.
            newest: dict[int, int] = {}
            for number, packet in packets:
                newest[number] = max(packet, newest.get(number, 0))
            self._queue.accept_up_to(newest.items())
        else:
            self._queue.verdict(packets, ACCEPT)
        # The send delivers the packets one after another, up to the receiving socket.
        each_ns = (time.monotonic_ns() - before_ns) // len(keys)
        base_us = (before_ns - self._zero_ns) // 1000
        self.errors.add([base_us - (key >> _KEY_BITS) + i * each_ns // 1000 for i, key in enumerate(keys, 1)])
        return len(keys) == _RELEASE_CHUNK

    def flush(self) -> None:
        """Let go everything at once (a clean end: nothing is lost)."""
        while self.release(1 << 62):
            pass

    def stats(self) -> dict[str, Any]:
        """Counters, for the stats file."""
        return {
            "packets": dict(zip(self.config.pods, self.packets, strict=True)),
            "dropped": dict(zip(self.config.pods, self.dropped, strict=True)),
            "pending": self.pending,
            "verdict_errors": self._queue.verdict_errors,
            "release_error_us": {
                "median": self.errors.quantile_us(0.5),
                "p99": self.errors.quantile_us(0.99),
                "max": self.errors.max_us,
            },
            "cpu_ns": time.process_time_ns(),
            "scheduling": self.scheduling,
            **_overflow(self._numbers),
        }


def _overflow(numbers: list[int]) -> dict[str, int]:
    # queue number, peer port, waiting, copy mode, copy range, queue dropped, user dropped, id, 1
    queue_dropped = user_dropped = 0
    for line in Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text().splitlines():
        fields = line.split()
        if int(fields[0]) in numbers:
            queue_dropped += int(fields[5])
            user_dropped += int(fields[6])
    return {"queue_dropped": queue_dropped, "user_dropped": user_dropped}


def _write(path: Path, stats: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(stats))
    os.replace(temporary, path)


def _go_first() -> str:
    # Beside four busy loops on two CPUs, releases were late by 7.5 ms (p99) with nice -10, and by
    # 0.05 ms so. The process sleeps between releases, and the kernel throttles a runaway.
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
        return f"SCHED_RR {_PRIORITY}"
    except PermissionError:
        pass
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
        # With CONFIG_SCHED_AUTOGROUP nice counts only within a session, and we are one of our own.
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_NICE))
        return f"nice {_NICE}"
    except PermissionError:
        return "normal"


def _run(line: DelayLine, queue: QueueSocket, stop: list[int], stats_path: Path) -> None:
    # Arrivals carry their own time, so they may wait a little and come in batches, unless a
    # draw could make them due meanwhile.
    nap_ns = _NAP_NS if line.shortest_ns > 2 * _NAP_NS else 0
    next_stats_ns = received_ns = early_ns = 0
    while True:
        now_ns = time.monotonic_ns()
        if now_ns >= next_stats_ns:
            _write(stats_path, line.stats())
            next_stats_ns = now_ns + _STATS_EVERY_NS
            if select.select(stop, [], [], 0)[0]:
                return
        due_ns = line.next_due_ns
        if due_ns is None or not nap_ns:
            wake_ns = next_stats_ns if due_ns is None else min(due_ns - early_ns, next_stats_ns)
            watched = [queue.fileno(), *stop]
        else:
            wake_ns = min(due_ns - early_ns, received_ns + nap_ns, next_stats_ns)
            watched = stop
        if wake_ns > now_ns:
            ready = select.select(watched, [], [], (wake_ns - now_ns) / 1e9)[0]
            if any(fd in stop for fd in ready):
                return
            if not ready:
                late_ns = time.monotonic_ns() - wake_ns
                early_ns = min(max(early_ns + (late_ns - early_ns) // 16, 0), _MAX_EARLY_NS)
            if ready and due_ns is None and nap_ns:
                time.sleep(nap_ns / 1e9)
        received_ns = time.monotonic_ns()
        packets = queue.receive()
        if packets:
            now_ns = time.monotonic_ns()
            line.take(packets, now_ns, now_ns - time.time_ns())
        line.release(time.monotonic_ns() + _HORIZON_NS)


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or the parent's end."""
    (path,) = sys.argv[1:] if argv is None else argv
    config = Config(**json.loads(Path(path).read_text()))
    awake, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    parent = os.pidfd_open(config.parent_pid)
    if os.getppid() != config.parent_pid:
        return 0
    scheduling = _go_first()
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.disable()
    reorders = config.reorder_probability > 0
    with netns.entered(Path(config.netns)):
        try:
            queue = QueueSocket(
                list(config.pods.values()),
                max_packets=min(config.max_packets, MAX_PENDING - 1),
                whole_gso=not any((config.jitter_ns, config.loss_probability, config.loss_states, reorders)),
            )
        except OSError as error:
            print(error, flush=True)
            return 1
        line = DelayLine(config, queue)
        line.scheduling = scheduling
        print("ready", flush=True)
        stats_path = Path(config.stats_path)
        try:
            _run(line, queue, [awake.fileno(), parent], stats_path)
            line.flush()
        finally:
            _write(stats_path, line.stats())
            queue.close()
    return 0


def to_json(config: Config) -> str:
    """The configuration file's text."""
    return json.dumps(asdict(config), indent=1)


if __name__ == "__main__":
    sys.exit(main())
