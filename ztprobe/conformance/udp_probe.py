"""UDP probes between pods, from one process: sockets are opened inside the pods' namespaces.

Sending times are read just before the send, receiving times are the kernel's
(SO_TIMESTAMPNS); both are CLOCK_REALTIME of this machine, so one-way delays need no
clock comparison. One thread serves all flows; each probe goes out at its own moment
within its interval, so that no queue is met in step.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import selectors
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ztprobe.conformance.judgement import OneWay, Rate, direction
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.profile.model import FRAME_BYTES, Profile

__all__ = (
    "PROBES",
    "ProbeEnd",
    "can_offer",
    "opened_ends",
    "probe_delays",
    "probe_flows",
    "probe_rates",
    "probing_s",
    "rate_flows",
    "rate_of",
    "run_load",
    "run_probes",
    "undisturbed",
    "warm_up",
)

_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_RECEIVE_BUFFER_BYTES = 4 << 20
_DISCARD_PORT = 9
_ATF_PERM = 0x04  # include/uapi/linux/if_arp.h
_PROBE = struct.Struct("!QI")  # sending time in ns, sender's index
_PROBE_BYTES = 64
_TIMESPEC = struct.Struct("@qq")
_UDP_PAYLOAD_BYTES = FRAME_BYTES - 14 - 20 - 8

# Held open while packets are sent along these flows: source address and port, destination's.
Through = Callable[[Sequence[tuple[str, int, str, int]]], AbstractContextManager[None]]

PROBES = 500  # per direction
_PROBING_S = 1.1
_PROBES_PER_S = 10_000  # of all flows together: what one thread sends and reads without falling behind
_TAIL_S = 0.2  # beyond the delay itself, for probes that are still under way
_RATE_S = 0.55
_RATE_SETTLE_S = 0.1
_EDGE_DEVIATIONS = 3  # of the jitter
_OFFER = 1.5  # times the rate
_OFFER_LIMIT_MBIT = 250.0  # what one Python thread surely sends


@dataclass
class ProbeEnd:
    """A pod's socket, and what has arrived on it: (sender index, sent ns, received ns)."""

    name: str  # the pod's
    socket: socket.socket | None  # None: it is on another node
    address: tuple[str, int]
    arrived: list[tuple[int, int, int]] = field(default_factory=list)

    def drain(self) -> None:
        """Take what has arrived."""
        while self.socket is not None:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(2048, 64)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue
            received_ns = time.time_ns()
            for _, kind, payload in ancillary:
                if kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack_from(payload)
                    received_ns = seconds * 1_000_000_000 + nanoseconds
            if len(data) >= _PROBE.size:
                sent_ns, sender = _PROBE.unpack_from(data)
                self.arrived.append((sender, sent_ns, received_ns))


def warm_up(pods: Sequence[Pod]) -> None:
    """Make every pod resolve every other, so that no later loss or delay meets an ARP request.

    One datagram each way to the discard port; nothing listens, and that is no error. Not to whom a pod knows
    for good: with 200 pods those datagrams were 40,000 drops in a trace.
    """
    for pod in pods:
        with entered(pod.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            known = _known_for_good()
            for peer in pods:
                if peer is not pod and peer.address not in known:
                    with contextlib.suppress(OSError):
                        sender.sendto(b"", (peer.address, _DISCARD_PORT))
    # Answers to ARP come within a fraction of this where nothing is emulated.
    time.sleep(0.02)


def _known_for_good() -> set[str]:
    # IP address, HW type, flags, HW address, mask, device; of the namespace that this thread is in.
    lines = Path("/proc/thread-self/net/arp").read_text().splitlines()[1:]
    return {line.split()[0] for line in lines if int(line.split()[2], 16) & _ATF_PERM}


def probe_delays(
    server: Pod, clients: Sequence[Pod], profile: Profile, *, probes: int = PROBES
) -> tuple[OneWay, ...]:
    """Send small datagrams each way between the server and every client, all in parallel.

    Takes 1.1 s (longer from 12 clients on), the delay and 0.2 s.

    :param probes: per direction; a slow machine wants fewer.
    """
    flows = [pair for client in clients for pair in ((client, server), (server, client))]
    return probe_flows(flows, profile, probes=probes, seconds=probing_s(len(flows), probes))


def probing_s(flows: int, probes: int = PROBES) -> float:
    """How long so many flows are to take."""
    return max(_PROBING_S, probes * flows / _PROBES_PER_S)


def probe_flows(
    flows: Sequence[tuple[Pod, Pod]],
    profile: Profile,
    *,
    probes: int = PROBES,
    seconds: float = _PROBING_S,
    through: Through | None = None,
) -> tuple[OneWay, ...]:
    """Send small datagrams along each (sender, receiver), all in parallel, within so many seconds.

    :param through: gets the flows in the same order.
    """
    pods = list({id(pod): pod for flow in flows for pod in flow}.values())
    places = {id(pod): index for index, pod in enumerate(pods)}
    with opened_ends(pods) as ends:
        pairs = [(places[id(sender)], places[id(receiver)]) for sender, receiver in flows]
        tuples = [(*ends[a].address, *ends[b].address) for a, b in pairs]
        with nullcontext() if through is None else through(tuples), undisturbed():
            run_probes(ends, pairs, profile, probes, seconds)
        directions = []
        for sender, receiver in pairs:
            arrived = [(sent, got) for who, sent, got in ends[receiver].arrived if who == sender]
            first = dict(reversed(arrived))  # of a probe that came twice
            directions.append(
                direction(
                    ends[sender].name,
                    ends[receiver].name,
                    probes,
                    [(got - sent) / 1e6 for sent, got in first.items()],
                    duplicates=len(arrived) - len(first),
                    profile=profile,
                )
            )
        return tuple(directions)


def rate_flows(
    flows: Sequence[tuple[Pod, Pod]],
    profile: Profile,
    *,
    through: Sequence[Through] = (),
) -> tuple[Rate, ...]:
    """Offer 1.5 times the rate along each (sender, receiver) in turn, and count frames where they arrive.

    A rate beyond what one thread surely sends is not measured (None).

    :param through: for each of the flows.
    """
    if profile.rate_mbit is None:
        return ()
    if profile.rate_mbit * _OFFER > _OFFER_LIMIT_MBIT:
        return tuple(Rate(sender=sender.name, goodput_mbit=None, frames=0) for sender, _ in flows)
    found = []
    for number, (sender, receiver) in enumerate(flows):
        with opened_ends([receiver, sender]) as ends:
            tuples = [(*ends[1].address, *ends[0].address)]
            with through[number](tuples) if through else nullcontext(), undisturbed():
                run_load(ends, profile, senders=[1])
            times = sorted(received_ns for _, _, received_ns in ends[0].arrived)
            found.append(rate_of(sender.name, times, profile))
    return tuple(found)


def probe_rates(server: Pod, clients: Sequence[Pod], profile: Profile) -> tuple[Rate, ...]:
    """Offer 1.5 times the rate from every pod at once for 0.55 s, and count frames where they arrive.

    Clients send to the server, the server to all clients in turn. The first 0.1 s is left out
    (the token bucket starts full).
    """
    if profile.rate_mbit is None:
        return ()
    pods = [server, *clients]
    if not can_offer(profile, len(pods)):
        return tuple(Rate(sender=pod.name, goodput_mbit=None, frames=0) for pod in pods)
    with opened_ends(pods) as ends, undisturbed():
        run_load(ends, profile)
        arrivals: list[list[int]] = [[] for _ in ends]
        for end in ends:
            for sender, _, received_ns in end.arrived:
                arrivals[sender].append(received_ns)
        return tuple(
            rate_of(end.name, sorted(times), profile) for end, times in zip(ends, arrivals, strict=True)
        )


def can_offer(profile: Profile, pods: int) -> bool:
    """Whether one thread surely sends more than the rate for so many pods."""
    return (profile.rate_mbit or 0.0) * pods * _OFFER <= _OFFER_LIMIT_MBIT


@contextlib.contextmanager
def opened_ends(pods: Sequence[Pod]) -> Iterator[list[ProbeEnd]]:
    """A socket in each pod's network meanwhile."""
    with contextlib.ExitStack() as stack:
        ends = []
        for pod in pods:
            with entered(pod.netns):
                opened = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            opened.setblocking(False)
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            opened.bind((pod.address, 0))
            ends.append(ProbeEnd(pod.name, opened, opened.getsockname()))
        yield ends


def run_probes(
    ends: Sequence[ProbeEnd],
    flows: Sequence[tuple[int, int]],
    profile: Profile,
    probes: int,
    seconds: float,
    *,
    late_s: float = 0.0,
) -> None:
    """Send probes along flows (sender, receiver) between ends, as far as they are here, and take them.

    :param late_s: how much later than this others' may begin, which send from elsewhere.
    """
    moments = random.Random(0)
    interval_s = seconds / probes
    start_s = time.monotonic() + 0.005
    schedule = [
        (start_s + (number + moments.random()) * interval_s, sender, receiver)
        for sender, receiver in flows
        for number in range(probes)
        if ends[sender].socket is not None
    ]
    heapq.heapify(schedule)
    padding = bytes(_PROBE_BYTES - _PROBE.size)
    end_s = start_s + seconds + (profile.delay_ms + 5 * profile.jitter_ms) / 1e3 + _TAIL_S + late_s
    expected = probes * sum(ends[receiver].socket is not None for _, receiver in flows)
    with _selector(ends) as selector:
        while (now_s := time.monotonic()) < end_s:
            while schedule and schedule[0][0] <= now_s:
                _, sender, receiver = heapq.heappop(schedule)
                payload = _PROBE.pack(time.time_ns(), sender) + padding
                _send(ends, sender, receiver, payload)  # not sent counts as lost, as it should
                now_s = time.monotonic()
            _drain(selector, (schedule[0][0] if schedule else end_s) - now_s)
            everything = sum(len(end.arrived) for end in ends) >= expected
            if not schedule and everything and not profile.mutates:
                return


def _send(ends: Sequence[ProbeEnd], sender: int, receiver: int, payload: bytes) -> None:
    source = ends[sender].socket
    assert source is not None
    with contextlib.suppress(OSError):
        source.sendto(payload, ends[receiver].address)


def run_load(
    ends: Sequence[ProbeEnd],
    profile: Profile,
    senders: Sequence[int] | None = None,
    *,
    late_s: float = 0.0,
) -> None:
    """Offer more than the rate from ends to the first one, and from that to the others, and take it.

    :param senders: which of them offer; None: all that are here.
    :param late_s: how much later than this others' may begin, which send from elsewhere.
    """
    if senders is None:
        senders = [number for number, end in enumerate(ends) if end.socket is not None]
    assert profile.rate_mbit is not None
    gap_s = FRAME_BYTES * 8 / (profile.rate_mbit * _OFFER * 1e6)
    start_s = time.monotonic()
    stop_s = start_s + _RATE_S + 2 * _edge_s(profile)
    schedule = [(start_s + gap_s * index / len(ends), index) for index in senders]
    heapq.heapify(schedule)
    padding = bytes(_UDP_PAYLOAD_BYTES - _PROBE.size)
    turn = 0
    with _selector(ends) as selector:
        while senders and (now_s := time.monotonic()) < stop_s:
            while schedule[0][0] <= now_s:
                due_s, sender = schedule[0]
                heapq.heapreplace(schedule, (due_s + gap_s, sender))
                turn += 1
                receiver = 0 if sender else 1 + turn % (len(ends) - 1)
                # A full socket or queue is what a rate limit looks like from here.
                _send(ends, sender, receiver, _PROBE.pack(0, sender) + padding)
            _drain(selector, schedule[0][0] - time.monotonic())
        # Until the queues behind the limit have run empty, for the next user of the path.
        quiet_s = (profile.delay_ms / 1e3) + 0.15 + late_s
        last_s, seen = time.monotonic(), -1
        while time.monotonic() - last_s < quiet_s:
            _drain(selector, 0.02)
            if (count := sum(len(end.arrived) for end in ends)) != seen:
                last_s, seen = time.monotonic(), count


def rate_of(sender: str, times_ns: list[int], profile: Profile) -> Rate:
    """What arrived of a sender's load.

    :param times_ns: when its frames did, in order.
    """
    if not times_ns:
        return Rate(sender=sender, goodput_mbit=0.0, frames=0)
    # Where the delay varies, the first and the last frames come thinly, and say nothing of the rate.
    first_ns = times_ns[0] + round((_RATE_SETTLE_S + _edge_s(profile)) * 1e9)
    last_ns = times_ns[-1] - round(_edge_s(profile) * 1e9)
    steady = [t - times_ns[0] for t in times_ns if first_ns <= t <= last_ns]
    if len(steady) < 10:
        return Rate(sender=sender, goodput_mbit=0.0, frames=len(steady))
    # By all frames: two alone would carry the whole of their delays' variation into the result.
    gap_ns = statistics.linear_regression(range(len(steady)), steady).slope
    goodput_mbit = FRAME_BYTES * 8e3 / gap_ns
    seconds = (steady[-1] - steady[0]) / 1e9
    return Rate(sender=sender, goodput_mbit=round(goodput_mbit, 4), frames=len(steady), seconds=seconds)


def _edge_s(profile: Profile) -> float:
    return _EDGE_DEVIATIONS * profile.jitter_ms / 1e3


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Have this thread go before others, where the system allows it.

    Between reading the clock and sending, a busy machine would add its own delay.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


@contextlib.contextmanager
def _selector(ends: Sequence[ProbeEnd]) -> Iterator[selectors.BaseSelector]:
    # select(2), because epoll rounds a timeout up to whole milliseconds.
    with selectors.SelectSelector() as selector:
        for end in ends:
            if end.socket is not None:
                selector.register(end.socket, selectors.EVENT_READ, end)
        yield selector


def _drain(selector: selectors.BaseSelector, timeout_s: float) -> None:
    for key, _ in selector.select(max(0.0, timeout_s)):
        key.data.drain()
