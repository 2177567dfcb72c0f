"""What a deadline cut off: a transfer that was under way, or a client that still computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.evidence.values import Burst, Retransmission, Wire
from ztprobe.events.kinds import Direction, Hook

__all__ = ("recognise_deadlines",)

_MESSAGE_BYTES = 8 << 10
_MUCH = 0.5  # of a deadline
_STILL_NS = 1_000_000_000


class _State(NamedTuple):
    """Where a client was when a deadline passed."""

    doing: str  # waiting | receiving | computing | sending | stuck (nothing arrives any more)
    since_ns: int
    bytes: int  # of the message under way


def recognise_deadlines(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Of each round that ended without somebody, where the missing clients were then."""
    for trouble in troubles:
        if trouble.kind not in ("missing", "unfinished") or not trouble.rounds:
            continue
        if case.is_attached and trouble.kind == "unfinished":
            continue  # it had no deadline: the trace ended before it
        number = trouble.rounds[0]
        ended_ns = next(
            (
                e["time_monotonic_ns"]
                for e in case.run.rounds
                if e["event"] == "wait_end" and e.get("round") == number
            ),
            None,
        )
        if ended_ns is None:
            continue
        states = {pod: _state(case, pod, trouble.from_ns, ended_ns) for pod in trouble.pods}
        by_doing: dict[str, list[str]] = defaultdict(list)
        for pod, state in states.items():
            by_doing["transfer" if state.doing in ("receiving", "sending") else state.doing].append(pod)
        if by_doing["transfer"]:
            yield _transfer(case, trouble, ended_ns, {pod: states[pod] for pod in by_doing["transfer"]})
        for pod in by_doing["computing"]:
            yield _slow_client(case, trouble, ended_ns, pod, states[pod])


def _state(case: Case, pod: str, from_ns: int, until_ns: int) -> _State:
    bursts: dict[Direction, list[Burst]] = {Direction.RX: [], Direction.TX: []}
    read: list[Burst] = []
    for (owner, hook, key), found in case.events.bursts.items():
        if owner != pod:
            continue
        for direction, each in found.items():
            within = [b for b in each if b.first_ns < until_ns and b.last_ns >= from_ns]
            if hook == Hook.ETH and isinstance(key, Wire):
                bursts[direction] += within
            elif hook == Hook.SOCK and direction == Direction.RX:
                read += within
    came = [b for b in bursts[Direction.RX] if b.bytes >= _MESSAGE_BYTES and b.first_ns >= from_ns]
    if not came and sum(b.bytes for b in bursts[Direction.RX]) >= _MESSAGE_BYTES:
        came = bursts[Direction.RX]  # in pieces: large frames went the other way meanwhile
    if not came:  # a small one, which began with frames of the round before
        came = [b for b in read if b.bytes >= _MESSAGE_BYTES and b.first_ns >= from_ns]
    if not came:
        return _State("waiting", from_ns, 0)
    down = min(came, key=lambda b: b.first_ns)
    # A burst is told when it is closed; what was under way at the deadline ended behind it.
    last_down = max(came, key=lambda b: b.last_ns)
    if last_down.last_ns > until_ns:
        return _State("receiving", down.first_ns, last_down.bytes)
    up = [b for b in bursts[Direction.TX] if b.bytes >= _MESSAGE_BYTES and b.first_ns > down.first_ns]
    if not up:
        return _State("computing", last_down.last_ns, 0)
    arriving_ns = max(_arrivals(case, pod, up[0].first_ns), default=0)
    if arriving_ns < until_ns - max(_STILL_NS, (until_ns - from_ns) // 10):
        return _State("stuck", up[0].first_ns, max(b.bytes for b in up))
    return _State("sending", up[0].first_ns, max(b.bytes for b in up))


def _arrivals(case: Case, pod: str, since_ns: int) -> Iterator[int]:
    """When bytes of a client last came in at the other end of its connections."""
    for (owner, hook, key), found in case.events.bursts.items():
        if hook != Hook.ETH or not isinstance(key, Wire) or owner == pod:
            continue
        if case.addresses.get(pod) in (key.one.address, key.other.address):
            yield from (b.last_ns for b in found.get(Direction.RX, ()) if b.last_ns >= since_ns)


def _deadline_s(case: Case) -> float | None:
    for event in case.run.rounds:
        if event["event"] == "run_start" and isinstance(event.get("config"), dict):
            value = event["config"].get("round_deadline_s")
            return float(value) if isinstance(value, (int, float)) else None
    return None


def _transfer(case: Case, trouble: Trouble, ended_ns: int, states: Mapping[str, _State]) -> Cause:
    asked: Mapping[str, Any] = case.run.meta["emulation"]["requested"] or {}
    waited_s = (ended_ns - trouble.from_ns) / 1e9
    pod, state = min(states.items(), key=lambda item: item[1].since_ns)
    took_s = (ended_ns - state.since_ns) / 1e9
    rate_mbit, loss_pct = asked.get("rate_mbit"), asked.get("loss_pct") or 0
    whole = _largest_message(case) or state.bytes
    needed_s = 2 * whole * 8 / (rate_mbit * 1e6) if rate_mbit else 0.0
    sent_again = _lost(case, trouble, ended_ns)
    doing = f"was {state.doing} {'its update' if state.doing == 'sending' else 'the model'}"
    profile = case.run.meta["emulation"]["profile"]
    if needed_s > _MUCH * waited_s:
        identifier = "emulation.rate_too_low"
        why = f"{whole / 1e6:.1f} MB each way take {needed_s:.1f} s at {rate_mbit:g} Mbit/s ({profile})"
        remedy = f"raise the rate, or the deadline above {needed_s:.0f} s and the training time, or send less"
    elif loss_pct >= 1 and sent_again:
        identifier = "emulation.loss_profile"
        why = f"{profile} loses {loss_pct:g} % of packets; {len(sent_again)} segments were sent again"
        remedy = "lower the loss, use a congestion control that minds it less (BBR), or raise the deadline"
    elif (asked.get("delay_ms") or 0) * 20 / 1e3 > waited_s:
        identifier = "emulation.delay_too_long"
        why = (
            f"{profile} delays each packet by {asked['delay_ms']:g} ms, and a transfer takes many round trips"
        )
        remedy = "shorten the delay, or raise the deadline"
    else:
        identifier = "application.deadline_too_short"
        why = "the transfer was under way, and nothing was wrong with it"
        remedy = f"raise the deadline (FL_ROUND_DEADLINE_S) well above {waited_s:.1f} s"
    deadline_s = _deadline_s(case)
    limit = f"the deadline of {deadline_s:g} s" if deadline_s else f"the deadline, after {waited_s:.1f} s,"
    moments = [
        Moment(
            ts_ns=one.since_ns,
            pod=name,
            event=f"began {one.doing} its message of round {trouble.rounds[0]}",
            shows=f"{one.bytes / 1e6:.2f} MB of it had passed in the end",
        )
        for name, one in states.items()
    ]
    moments.append(
        Moment(
            ts_ns=ended_ns,
            pod=case.server,
            event="deadline: the server waits no longer",
            shows=f"{pod} {doing}",
        )
    )
    return cause_of(
        identifier,
        summary=f"{limit} ended round {trouble.rounds[0]} while {', '.join(states)} {doing}: {why}",
        strength=0.85,
        moments=tuple(sorted(moments)),
        remedial=Remedial(words=remedy),
        pods=tuple(states),
        component="transmission",
        details={"deadline_s": deadline_s, "needed_s": round(needed_s, 3) if needed_s else round(took_s, 3)},
    )


def _largest_message(case: Case) -> int:
    return max(
        (
            burst.bytes
            for (_, hook, key), found in case.events.bursts.items()
            if hook in (Hook.ETH, Hook.LO)
            for bursts in found.values()
            for burst in bursts
        ),
        default=0,
    )


def _lost(case: Case, trouble: Trouble, until_ns: int) -> list[Retransmission]:
    return [
        one
        for (pod, _), found in case.events.retransmissions.items()
        if pod in (*case.clients, case.server)
        for one in found
        if trouble.from_ns <= one.ts_ns <= until_ns
    ]


def _slow_client(case: Case, trouble: Trouble, ended_ns: int, pod: str, state: _State) -> Cause:
    others = sorted(
        (e["time_monotonic_ns"] - trouble.from_ns) / 1e9
        for e in case.run.rounds
        if e["event"] == "update_received" and e.get("round") == trouble.rounds[0]
    )
    came = f"the others were through after {others[-1]:.1f} s" if others else "nobody was through"
    return cause_of(
        "application.slow_client",
        summary=f"{pod} still computed when the deadline ended round {trouble.rounds[0]} "
        f"({(ended_ns - state.since_ns) / 1e9:.1f} s after it had the model; {came})",
        strength=0.8,
        moments=(
            Moment(
                ts_ns=state.since_ns,
                pod=pod,
                event="the last byte of the model arrived",
                shows="it could begin",
            ),
            Moment(
                ts_ns=ended_ns,
                pod=case.server,
                event="deadline: the server waits no longer",
                shows=f"{pod} had sent nothing of its update",
            ),
        ),
        remedial=Remedial(
            words=f"give {pod} more CPU or less to train, or raise the deadline (FL_ROUND_DEADLINE_S)"
        ),
        pods=(pod,),
        component="compute",
        details={"deadline_s": _deadline_s(case)},
    )
