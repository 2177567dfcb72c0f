"""Why nothing goes on: who waits for whom, how every connection between them stands, what will end it. Pure.

Progress is payload that a connection's other end has acknowledged, or CPU time of a process that is waited
for: so a long training is no stall, and keep-alives, retransmissions and attempts to connect are no progress.
It is judged by looks (`ztprobe.agent.stall_snapshot`) a few seconds apart, for a run, an attached
deployment or one moment.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ztprobe.agent.stall_snapshot import StallLook
from ztprobe.kernelnet.tcp_ends import PROBE_TIMER, RETRANSMIT_TIMER, TcpEnd

__all__ = ("Stall", "StallWatch", "Standing", "Timeout", "stall_words", "standings")

# HTTP/2 frames without data stay below; what a connection carries before its first message, too.
_FRAME_BYTES, _SETUP_BYTES = 256, 8192
_CPU_SHARE = 0.02  # of a core: more than what waits, pings and logs
_RTO_MAX_S = 120.0  # TCP_RTO_MAX
_LOOKS = 4  # within the time after which a stall is one: so long after it at the latest it is named
_FEW = 3
_STOPPED = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "blocked in the kernel",
    "Z": "dead",
}
# The worst first.
_ORDER = (
    *("no answer to SYN", "retransmitting into nothing", "gone at one end only", "zero window"),
    *("not read", "closed by one side", "bytes on the way", "established and silent"),
)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a connection stands."""

    source: str  # pod and port of the end that was looked at
    target: str
    state: str  # one of _ORDER
    detail: str
    last_data_age_s: float | None  # since data last crossed, either way; None: none has
    last_data_from: str  # the pod that sent it
    ends_in_s: float | None  # TCP itself gives up then; None: not by itself
    ends_by: str


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """What will end it."""

    what: str
    in_s: float


@dataclass(frozen=True, kw_only=True)
class Stall:
    """Nothing has gone on since `since_s`."""

    at_s: float  # CLOCK_MONOTONIC, as since_s
    since_s: float
    round: int | None  # None: before the first, or not known
    waiting: str  # who waits; empty: not known
    waits_for: tuple[str, ...]
    states: dict[str, str]  # of those waited for: what their processes do, where that tells something
    connections: tuple[Standing, ...]  # the worst first
    timeouts: tuple[Timeout, ...]  # the earliest first

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "at_ns": int(self.at_s * 1e9),
            "since_ns": int(self.since_s * 1e9),
            "round": self.round,
            "waiting": self.waiting,
            "waits_for": list(self.waits_for),
            "states": self.states,
            "connections": [asdict(one) for one in self.connections],
            "timeouts": [asdict(one) for one in self.timeouts],
            "words": stall_words(self),
        }


class StallWatch:
    """Takes looks, and says once of each stall what it is.

    :param after_s: how long nothing must go on.
    :param since_s: from when on there is something to look at (CLOCK_MONOTONIC).
    :param least_bytes: what a connection has to carry between two looks so that something goes on.
    :param least_cpu_share: likewise of a core, what processes that are waited for have to use.
    """

    def __init__(
        self,
        after_s: float,
        *,
        since_s: float = 0.0,
        least_bytes: int = _FRAME_BYTES,
        least_cpu_share: float = _CPU_SHARE,
    ) -> None:
        self._after_s = after_s
        self._period_s = after_s / _LOOKS
        self._next_s = since_s + self._period_s
        self._least_bytes, self._least_cpu_share = least_bytes, least_cpu_share
        self._before: StallLook | None = None
        self._moved_s: float | None = None
        self._is_said = False

    def due(self, now_s: float) -> bool:
        """Whether it is time for another look, which then has to be taken."""
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._period_s
        return True

    def moved(self) -> None:
        """Something has gone on, by another's word: an event of the application."""
        self._before, self._moved_s, self._is_said = None, None, False

    def take(
        self,
        now: StallLook,
        *,
        waiting: str = "",
        waits_for: Sequence[str] = (),
        round_number: int | None = None,
        timeouts: Iterable[Timeout] = (),
    ) -> Stall | None:
        """The stall, once it is one.

        :param waits_for: pods; empty: any may be waited for.
        :param timeouts: that the application has set.
        """
        wanted = tuple(waits_for) or tuple(now.processes)
        if (
            self._before is None
            or self._moved_s is None
            or self._went_on(self._before, now, {*wanted, waiting})
        ):
            self._before, self._moved_s, self._is_said = now, now.at_s, False
            return None
        self._before = now
        if self._is_said or now.at_s - self._moved_s < self._after_s:
            return None
        self._is_said = True
        connections = standings(now, waiting=waiting, waits_for=wanted)
        by_tcp = [
            Timeout(what=f"TCP gives up {one.source} -> {one.target} ({one.ends_by})", in_s=one.ends_in_s)
            for one in connections
            if one.ends_in_s is not None
        ]
        return Stall(
            at_s=now.at_s,
            since_s=self._moved_s,
            round=round_number,
            waiting=waiting,
            waits_for=tuple(waits_for),
            states=_states(now, dict.fromkeys((waiting, *wanted)) if waiting else wanted),
            connections=connections,
            timeouts=tuple(sorted((*timeouts, *by_tcp), key=lambda one: one.in_s)),
        )

    def _went_on(self, before: StallLook, now: StallLook, wanted: set[str]) -> bool:
        seconds = max(now.at_s - before.at_s, 0.1)
        for pod in wanted:
            cpu_s = sum(
                process.cpu_s - earlier.cpu_s
                for pid, process in now.processes.get(pod, {}).items()
                if (earlier := before.processes.get(pod, {}).get(pid)) is not None
            )
            if cpu_s > self._least_cpu_share * seconds:
                return True
        earlier_bytes = {
            (pod, end.key): _message_bytes(end) for pod, ends in before.ends.items() for end in ends
        }
        return any(
            _message_bytes(end) - earlier_bytes.get((pod, end.key), 0) > self._least_bytes
            for pod, ends in now.ends.items()
            for end in ends
        )


def _message_bytes(end: TcpEnd) -> int:
    return max(0, end.acked_bytes - _SETUP_BYTES) + max(0, end.received_bytes - _SETUP_BYTES)


def _states(now: StallLook, pods: Iterable[str]) -> dict[str, str]:
    found = {}
    for pod in pods:
        processes = now.processes.get(pod, {})
        said = {_STOPPED[each.state] for each in processes.values() if each.state in _STOPPED}
        if not processes:
            found[pod] = "has no process"
        elif said:
            found[pod] = " and ".join(sorted(said))
    return found


def standings(now: StallLook, *, waiting: str, waits_for: Sequence[str]) -> tuple[Standing, ...]:
    """Every connection between who waits and those waited for, each once; without either, all between pods.

    Of those within one of these pods (to and from a sidecar) the ones that do not just wait.
    """
    involved = {waiting, *waits_for} - {""}
    found, seen = [], set[Any]()
    whose = {(_place(now, pod, end), end.key): pod for pod, ends in now.ends.items() for end in ends}
    for pod, ends in now.ends.items():
        for end in ends:
            place = _place(now, pod, end)
            other = whose.get(
                (place, end.other_key), now.addresses.get(end.remote, "" if place is None else pod)
            )
            within = place is not None and other == pod
            if within:
                wanted = pod in involved
            elif waiting:
                wanted = waiting in (pod, other) and {pod, other} <= involved and pod != other
            else:
                wanted = bool(other) and other != pod
            key = (pod if within else "", frozenset((end.key, end.other_key)))
            if not wanted or key in seen:
                continue
            seen.add(key)
            standing = _standing(now, pod, end, other)
            if not within or standing.state != _ORDER[-1]:
                found.append(standing)
    return tuple(sorted(found, key=lambda one: (_ORDER.index(one.state), one.source)))


def _place(now: StallLook, pod: str, end: TcpEnd) -> int | str | None:
    """The namespace in which a loopback address means something; None: it is none."""
    return now.places.get(pod, pod) if ipaddress.ip_address(end.local).is_loopback else None


def _standing(now: StallLook, pod: str, end: TcpEnd, other: str) -> Standing:
    # Told from the end that is worse off: of two ends that disagree, that is the one that knows less.
    peer = next((each for each in now.ends.get(other, ()) if each.key == end.other_key), None)
    state, detail = _state(end, peer, pod, other, is_seen=other in now.ends)
    if peer is not None:
        theirs = _state(peer, end, other, pod, is_seen=True)
        if _ORDER.index(theirs[0]) < _ORDER.index(state):
            pod, end, other, peer, (state, detail) = other, peer, pod, end, theirs
    age_s, sender = _last_data(pod, end, other, peer)
    ends_in_s, ends_by = _given_up(now, pod, end, state)
    return Standing(
        source=f"{pod}:{end.local_port}",
        target=f"{other}:{end.remote_port}",
        state=state,
        detail=detail,
        last_data_age_s=age_s,
        last_data_from=sender,
        ends_in_s=ends_in_s,
        ends_by=ends_by,
    )


def _state(end: TcpEnd, peer: TcpEnd | None, pod: str, other: str, *, is_seen: bool) -> tuple[str, str]:
    """:param is_seen: the other pod's connections are known."""
    gone = f", and {other} has no such connection any more" if is_seen and peer is None else ""
    if end.state == "syn_sent":
        answered = f", which {other} has seen: its answer does not come" if peer is not None else ""
        return "no answer to SYN", f"sent {_times(end.repeats + 1)}{answered}"
    if end.timer == PROBE_TIMER and not end.window_bytes:
        unread = f", {peer.unread_bytes:,} bytes wait there" if peer is not None else ""
        return "zero window", f"{other} does not read{unread}; asked {_times(end.repeats)}"
    # Without a route or a carrier nothing is in flight, and the other timer does it.
    if end.timer in (RETRANSMIT_TIMER, PROBE_TIMER) and end.repeats > 1:
        return "retransmitting into nothing", f"{_times(end.repeats)}, {end.unacked_bytes:,} bytes{gone}"
    if gone:
        return "gone at one end only", f"{other} has no such connection any more"
    if end.unread_bytes:
        return "not read", f"{end.unread_bytes:,} bytes wait for {pod} to read them"
    other_state = "not seen" if peer is None else peer.state
    if end.state != "established" or other_state not in ("established", "not seen"):
        return "closed by one side", f"{pod} {end.state}, {other} {other_state}"
    back = 0 if peer is None else peer.unacked_bytes
    if end.unacked_bytes or back:
        return "bytes on the way", f"{end.unacked_bytes:,} bytes from {pod}, {back:,} from {other}"
    return "established and silent", f"{other}'s end is not seen" if peer is None else ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _last_data(pod: str, end: TcpEnd, other: str, peer: TcpEnd | None) -> tuple[float | None, str]:
    ages = [(end.received_age_s, other)]
    if peer is not None:
        ages.append((peer.received_age_s, pod))
    known = [(age, sender) for age, sender in ages if age is not None]
    return min(known) if known else (None, "")


def _given_up(now: StallLook, pod: str, end: TcpEnd, state: str) -> tuple[float | None, str]:
    name = {"no answer to SYN": "tcp_syn_retries", "retransmitting into nothing": "tcp_retries2"}.get(
        state, ""
    )
    limits = now.limits.get(pod, {})
    if name in limits and end.timer == RETRANSMIT_TIMER:
        # The timer doubles with each repeat, up to two minutes, but for the first few SYNs; after the last it
        # runs once more (include/net/tcp.h, net/ipv4/tcp_timer.c).
        linear = limits.get("tcp_syn_linear_timeouts", 0) if state == "no answer to SYN" else 0
        left_s, rto_s = end.timer_s, end.rto_s
        for repeat in range(end.repeats + 1, limits[name] + linear + 1):
            rto_s = min(2 * rto_s, _RTO_MAX_S) if repeat > linear else rto_s
            left_s += rto_s
        return left_s, f"{name} {limits[name]}"
    return None, ""


def stall_words(stall: Stall) -> str:
    """One line."""
    where = f"round {stall.round} stands still" if stall.round is not None else "no round goes on"
    said = [f"{where}: no data and no work for {stall.at_s - stall.since_s:.0f} s"]
    if stall.waiting and stall.waits_for:
        said.append(f"{stall.waiting} waits for {_listed(stall.waits_for)}")
    elif stall.waiting:
        said.append(f"every client has contributed, and {stall.waiting} does nothing")
    said += [
        f"{pod} {state}" if state.startswith("has") else f"{pod} is {state}"
        for pod, state in stall.states.items()
    ]
    ages = [one for one in stall.connections if one.last_data_age_s is not None]
    if ages:
        last = min(ages, key=lambda one: one.last_data_age_s or 0.0)
        ends = {last.source.rpartition(":")[0], last.target.rpartition(":")[0]} - {last.last_data_from}
        to = next(iter(ends), "itself")
        said.append(f"the last data crossed {last.last_data_age_s:.1f} s ago, {last.last_data_from} -> {to}")
    said += [_connection_words(one) for one in stall.connections[:_FEW]]
    if len(stall.connections) > _FEW:
        said.append(f"{len(stall.connections) - _FEW} more connections")
    if not stall.connections and stall.waits_for and stall.waiting:
        said.append("no connection between them")
    if stall.timeouts:
        said.append(f"ends in {stall.timeouts[0].in_s:.0f} s: {stall.timeouts[0].what}")
    else:
        said.append("no timeout is known that will end it")
    return "; ".join(said)


def _connection_words(one: Standing) -> str:
    detail = f" ({one.detail})" if one.detail else ""
    return f"{one.source} -> {one.target} {one.state}{detail}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{', '.join(names[:_FEW])}{more}"
