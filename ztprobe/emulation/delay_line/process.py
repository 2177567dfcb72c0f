"""The userspace delay line: one process that holds the packets of a node's profiled pods.

``python -m ztprobe.emulation.delay_line.process CONFIG.json`` binds one NFQUEUE per pod inside the
node's network namespace, prints ``ready`` and then gives every packet its verdict when its
time has come. It stands on the node's forward path, between the sender's tc egress and the
receiver's tc ingress, where a held packet no longer counts against its socket's small-queue
limit.

What each packet meets is `ztprobe.emulation.delay_line.impairment`'s to say, as netem does it; unlike netem,
ARP is not affected. Delay runs from the device's receive time stamp where the kernel gives one, so being
scheduled late costs accuracy only for packets that are already due. Loss is a verdict.
Pending packets are integers in a heap: ``due [us] << 26 | pod << 20 | packet id mod 2**20``.

A line of JSON on standard input changes what packets meet from then on, answered by a line with
the moment since when. Held packets keep their due time, as in netem, so a shorter delay lets new
ones overtake them.

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
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from ztprobe.emulation.delay_line.config import Config, from_json
from ztprobe.emulation.delay_line.histogram import ErrorHistogram
from ztprobe.emulation.delay_line.impairment import Condition, Impairments
from ztprobe.emulation.delay_line.lateness import LATE_NS, Lateness
from ztprobe.emulation.delay_line.nfqueue import ACCEPT, DROP, Packet, QueueSocket
from ztprobe.kernelnet import netns
from ztprobe.rundir import files

__all__ = (
    "MAX_PENDING",
    "MAX_PODS",
    "DelayLine",
    "VerdictQueue",
    "main",
)

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
_LOOK_EVERY_NS = 1_000_000  # for a change, where packets leave no pause to wait in
_TAKE_BEFORE = 64  # batches that have arrived before a change, and still meet what was in force
_PRIORITY = 2  # above the probing threads (1), which are busy where it is mostly asleep
_NICE = -10  # where real-time scheduling is refused
_PR_SET_TIMERSLACK = 29


class VerdictQueue(Protocol):
    """What the delay line needs of a `QueueSocket`."""

    verdict_errors: int

    def verdict(self, packets: Iterable[tuple[int, int]], verdict: int) -> None:
        """Give each (queue number, packet id) its verdict."""

    def accept_up_to(self, packets: Iterable[tuple[int, int]]) -> None:
        """Accept everything up to each id."""


class DelayLine:
    """The pending packets and what becomes of them; the socket is its only way out."""

    def __init__(self, config: Config, queue: VerdictQueue) -> None:
        if len(config.pods) > MAX_PODS:
            raise ValueError(f"at most {MAX_PODS} pods a delay line, got {len(config.pods)}")
        self.config = config
        self.errors = ErrorHistogram()
        self.lateness = Lateness()
        self.packets = [0] * len(config.pods)
        self.dropped = [0] * len(config.pods)
        self._queue = queue
        self._numbers = list(config.pods.values())
        self._pod_of = {number: index for index, number in enumerate(self._numbers)}
        self._last_id = [0] * len(config.pods)
        self._heap: list[int] = []
        self._draws = Impairments(config.condition, len(config.pods), config.seed)
        self._changed_under: int | None = None  # the last key in the heap that met an earlier condition
        self._zero_ns = time.monotonic_ns()
        self._oldest_ns = _OLDEST_NS
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
    def condition(self) -> Condition:
        """What packets meet that are taken now."""
        return self._draws.condition

    def change(self, condition: Condition) -> None:
        """What packets meet that are taken from now on; those held keep their due time."""
        self._draws.change(condition)
        if self._heap:
            self._changed_under = max(self._heap)

    def take(self, packets: list[Packet], now_ns: int, unix_to_monotonic_ns: int) -> None:
        """Decide loss, and when each of the others is due.

        :param now_ns: CLOCK_MONOTONIC at which they were read, used where a stamp is missing or
            implausible (a stepped wall clock must not hold or rush packets).
        """
        draws = self._draws
        lost = []
        for number, packet, unix_ns in packets:
            pod = self._pod_of[number]
            self.packets[pod] += 1
            self._last_id[pod] = packet
            if draws.may_lose and draws.lost(pod):
                self.dropped[pod] += 1
                lost.append((number, packet))
                continue
            arrived_ns = unix_ns + unix_to_monotonic_ns
            if not unix_ns or not now_ns - self._oldest_ns < arrived_ns <= now_ns:
                arrived_ns = now_ns
            due_us = max(0, arrived_ns + draws.delay_ns(pod) - self._zero_ns) // 1000
            heapq.heappush(self._heap, due_us << _KEY_BITS | pod << _ID_BITS | packet & _ID_MASK)
        if lost:
            self._queue.verdict(lost, DROP)

    def stood_still(self, from_ns: int, to_ns: int) -> None:
        """We had no CPU then. What has waited to be read meanwhile is as old as it says."""
        self.lateness.stood_still(from_ns, to_ns)
        self._oldest_ns = _OLDEST_NS + to_ns - from_ns

    def moved_on(self) -> None:
        """What waited during a standstill has been read."""
        self._oldest_ns = _OLDEST_NS

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
        if self._changed_under is not None and not (heap and heap[0] <= self._changed_under):
            self._changed_under = None
        before_ns = time.monotonic_ns()
        longest_due_ns = (keys[0] >> _KEY_BITS) * 1000 + self._zero_ns
        if before_ns - longest_due_ns > LATE_NS:
            self.lateness.released([(key >> _KEY_BITS) * 1000 + self._zero_ns for key in keys], before_ns)
        if self.condition.in_order and self._changed_under is None:
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
            "late": self.lateness.as_dict(),
            "written_ns": time.monotonic_ns(),
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
    files.write_whole(path, json.dumps(stats).encode(), mode=0o600)


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


class _Control:
    """Changes as they come on standard input."""

    def __init__(self, line: DelayLine, queue: QueueSocket, stats_path: Path) -> None:
        self.fds = [0]  # empty once nothing can come any more
        self._line = line
        self._stats_path = stats_path
        self._queue = queue
        self._text = b""

    def read(self) -> None:
        """Put what has been asked for into force, and say since when; ``{}`` asks for the counters alone."""
        data = os.read(0, 1 << 20)
        if not data:
            self.fds = []
        *asked, self._text = (self._text + data).split(b"\n")
        for text in asked:
            wanted = json.loads(text)
            _take_all(self._line, self._queue)
            if wanted:
                self._line.change(Condition(**wanted))
            else:
                while self._line.release(time.monotonic_ns()):
                    pass  # what is due by now counts
                _write(self._stats_path, self._line.stats())
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps({"at_ns": time.monotonic_ns()}), flush=True)


def _take_all(line: DelayLine, queue: QueueSocket) -> None:
    """What has arrived by now, bounded: meanwhile more arrives."""
    for _ in range(_TAKE_BEFORE):
        if not (packets := queue.receive()):
            break
        now_ns = time.monotonic_ns()
        line.take(packets, now_ns, now_ns - time.time_ns())


def _run(line: DelayLine, queue: QueueSocket, stop: list[int], stats_path: Path) -> None:
    control = _Control(line, queue, stats_path)
    next_stats_ns = next_look_ns = received_ns = early_ns = 0
    expected_ns = time.monotonic_ns()  # to be here again, give or take what one turn takes
    while True:
        now_ns = time.monotonic_ns()
        if now_ns - expected_ns > LATE_NS:
            line.stood_still(expected_ns, now_ns)
        expected_ns = now_ns
        if now_ns >= next_stats_ns:
            _write(stats_path, line.stats())
            next_stats_ns = now_ns + _STATS_EVERY_NS
        if now_ns >= next_look_ns:
            ready = select.select([*stop, *control.fds], [], [], 0)[0]
            if any(fd in stop for fd in ready):
                return
            if ready:
                control.read()
            next_look_ns = now_ns + _LOOK_EVERY_NS
        # Arrivals carry their own time, so they may wait a little and come in batches, unless a
        # draw could make them due meanwhile.
        nap_ns = _NAP_NS if line.condition.shortest_ns > 2 * _NAP_NS else 0
        due_ns = line.next_due_ns
        if due_ns is None or not nap_ns:
            wake_ns = next_stats_ns if due_ns is None else min(due_ns - early_ns, next_stats_ns)
            watched = [queue.fileno(), *stop, *control.fds]
        else:
            wake_ns = min(due_ns - early_ns, received_ns + nap_ns, next_stats_ns)
            watched = [*stop, *control.fds]
        if wake_ns > now_ns:
            ready = select.select(watched, [], [], (wake_ns - now_ns) / 1e9)[0]
            # Before anything that has waited meanwhile is looked at.
            if (expected_ns := time.monotonic_ns()) - wake_ns > LATE_NS:
                line.stood_still(wake_ns, expected_ns)
            if any(fd in stop for fd in ready):
                return
            if any(fd in control.fds for fd in ready):
                control.read()
                continue
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
        else:
            line.moved_on()
        line.release(time.monotonic_ns() + _HORIZON_NS)


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or the parent's end."""
    (path,) = sys.argv[1:] if argv is None else argv
    config = from_json(Path(path).read_text())
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
    with netns.entered(Path(config.netns)):
        try:
            queue = QueueSocket(
                list(config.pods.values()),
                max_packets=min(config.max_packets, MAX_PENDING - 1),
                whole_gso=config.whole_gso,
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
            _take_all(line, queue)  # closing the socket would drop it
            line.flush()
        finally:
            _write(stats_path, line.stats())
            queue.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
