"""Emulation: a profile that makes a deadline impossible, overflows, or is not what the pods got."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.evidence.values import Burst, Drop, Retransmission, Wire
from ztprobe.events.kinds import Direction, Hook

__all__ = ("recognise",)

_MESSAGE_BYTES = 8 << 10
_MUCH = 0.5  # of a deadline
_OVERFLOWS = 20
_OFF_MS, _OFF_SHARE = 5.0, 0.3
_LARGE_BYTES = 1000  # no small packet of a handshake, or of HTTP/2's control frames


class _State(NamedTuple):
    """Where a client was when a deadline passed."""

    doing: str  # waiting | receiving | computing | sending
    since_ns: int
    bytes: int  # of the message under way


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Everything of this class, and what deadlines cut off for other reasons."""
    yield from _deadlines(case, troubles)
    yield from _overflow(case, troubles)
    yield from _not_as_asked(case)
    yield from _too_big(case, troubles)


def _deadlines(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    for trouble in troubles:
        if trouble.kind not in ("missing", "unfinished") or not trouble.rounds:
            continue
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
            if _calls_in_vain(case, pod, states[pod].since_ns, ended_ns):
                continue
            yield _slow_client(case, trouble, ended_ns, pod, states[pod])


def _calls_in_vain(case: Case, pod: str, since_ns: int, until_ns: int) -> bool:
    """Whether it had something to send, and nobody took it."""
    return any(
        a.pod == pod and not a.is_local and a.answered_ns is None and since_ns < a.syns_ns[-1] < until_ns
        for a in case.attempts
    )


def _state(case: Case, pod: str, from_ns: int, until_ns: int) -> _State:
    bursts: dict[Direction, list[Burst]] = {Direction.RX: [], Direction.TX: []}
    for (owner, hook, key), found in case.events.bursts.items():
        if owner == pod and hook == Hook.ETH and isinstance(key, Wire):
            for direction, each in found.items():
                bursts[direction] += [
                    b for b in each if b.bytes >= _MESSAGE_BYTES and from_ns <= b.first_ns < until_ns
                ]
    down = min(bursts[Direction.RX], key=lambda b: b.first_ns, default=None)
    if down is None:
        return _State("waiting", from_ns, 0)
    # A burst is told when it is closed; what was under way at the deadline ended behind it.
    last_down = max(bursts[Direction.RX], key=lambda b: b.last_ns)
    if last_down.last_ns > until_ns:
        return _State("receiving", down.first_ns, last_down.bytes)
    up = [b for b in bursts[Direction.TX] if b.first_ns > down.first_ns]
    if not up:
        return _State("computing", last_down.last_ns, 0)
    return _State("sending", up[0].first_ns, max(b.bytes for b in up))


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


def _overflow(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    for pod, drops in case.events.drops.items():
        acting = [
            d
            for d in drops
            if d.reason == "QDISC_DROP" and any(t.from_ns <= d.ts_ns <= t.to_ns for t in troubles)
        ]
        if len(acting) < _OVERFLOWS:
            continue
        spread = _spread(acting)
        yield cause_of(
            "emulation.queue_overflow",
            summary=f"the queue of an emulated link overflows: {len(acting)} packets were dropped at {pod}",
            strength=0.6 + min(0.25, len(acting) / 2000),
            moments=tuple(
                Moment(
                    ts_ns=d.ts_ns,
                    pod=pod,
                    event=f"{case.pod_of(d.source.address)} -> {case.pod_of(d.target.address)}: QDISC_DROP",
                    shows="the queue was full",
                )
                for d in spread
            ),
            remedial=Remedial(
                words="raise the profile's `limit` above the bandwidth-delay product, or its rate"
            ),
            pods=(pod,),
            component="retransmission",
            details={"packets": len(acting)},
        )


def _spread(drops: Sequence[Drop]) -> list[Drop]:
    return [drops[0], drops[len(drops) // 2], drops[-1]]


def _not_as_asked(case: Case) -> Iterator[Cause]:
    """A measurement before the first round that does not fit what was asked for."""
    emulation = case.run.meta["emulation"]
    problems = emulation.get("problems")
    if case.failed is None or not problems:
        return
    asked, got = emulation["requested"] or {}, emulation["measured"] or {}
    more: list[str] = []
    less: list[str] = []
    for key in ("delay_ms", "loss_pct"):
        wanted, found = asked.get(key) or 0.0, got.get(key)
        if not isinstance(found, (int, float)) or abs(found - wanted) <= max(_OFF_MS, _OFF_SHARE * wanted):
            continue
        (more if found > wanted else less).append(f"{key} {found:g} instead of {wanted:g}")
    identifier = "emulation.leftover_profile" if more or not less else "emulation.wrong_interface"
    yield cause_of(
        identifier,
        summary=f"the pods do not get {emulation['profile']}: {'; '.join(map(str, problems))}",
        strength=0.8,
        moments=(
            Moment(
                ts_ns=int(case.run.meta["failed"]["at_ns"]),
                pod=case.server,
                event=f"measured: {', '.join(more + less) or 'otherwise than asked for'}",
                shows="something else delays, loses or limits packets"
                if more
                else "the profile does not act",
            ),
        ),
        remedial=Remedial(
            words="see what is on the pods' interfaces (`ztprobe profile show`, `tc qdisc`), take it off"
        ),
        component="propagation",
    )


def _too_big(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Large packets that vanish where small ones pass: nothing large ever arrived on the connection."""
    for (pod, key), sent_again in case.events.retransmissions.items():
        if not isinstance(key, Wire) or pod not in case.addresses:
            continue
        peer = case.pod_of(key.peer_of(case.addresses[pod]).address)
        acting = [
            r
            for r in sent_again
            if any(t.from_ns <= r.ts_ns <= t.to_ns for t in troubles) and r.bytes >= _LARGE_BYTES
        ]
        if len(acting) < 3 or _large_arrived(case, pod, peer, key):
            continue
        small = [
            p
            for p in case.events.packets.get((pod, key), ())
            if p.direction == Direction.RX and p.kind == "payload"
        ]
        if not small:
            continue
        big = max(r.bytes for r in acting)
        yield cause_of(
            "emulation.mtu_black_hole",
            summary=f"large packets from {pod} to {peer} vanish, small ones pass",
            strength=0.9,
            moments=(
                Moment(
                    ts_ns=small[0].ts_ns,
                    pod=pod,
                    event=f"{small[0].payload_bytes} bytes came from {peer}",
                    shows="small packets pass",
                ),
                *(
                    Moment(
                        ts_ns=r.ts_ns,
                        pod=pod,
                        event=f"{r.bytes} bytes sent again to {peer}",
                        shows="never acknowledged",
                    )
                    for r in (acting[0], acting[-1])
                ),
            ),
            remedial=Remedial(
                words=f"lower the MTU at {pod} below {big} bytes, or let ICMP 'fragmentation needed' pass"
            ),
            pods=(pod,),
            component="retransmission",
        )


def _large_arrived(case: Case, pod: str, peer: str, key: Wire) -> bool:
    bursts = case.events.bursts.get((peer, Hook.ETH, key), {}).get(Direction.RX, ())
    return any(burst.bytes >= _LARGE_BYTES for burst in bursts)
