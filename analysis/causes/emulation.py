"""Emulation: a profile that makes a deadline impossible, overflows, or is not what the pods got."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis.causes.black_holes import recognise_black_holes
from analysis.causes.case import Case
from analysis.causes.deadlines import recognise_deadlines
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.troubles import acts
from analysis.evidence.values import Drop

__all__ = ("recognise",)

_OVERFLOWS = 20
_LOSSY_PCT, _LOST = 5.0, 5
_BY_A_PROGRAM = "nfqnl_reinject"  # where a delay line's verdict drops a packet
_OFF_MS, _OFF_SHARE = 5.0, 0.3


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Everything of this class, and what deadlines cut off for other reasons."""
    yield from recognise_deadlines(case, troubles)
    if not case.is_attached:  # there nothing is emulated
        yield from _overflow(case, troubles)
        yield from _lossy(case, troubles)
    yield from _not_as_asked(case)
    yield from recognise_black_holes(case, troubles)


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


def _lossy(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """A way that was measured to lose many packets, and lost some of the workload's in a trouble."""
    emulation = case.run.meta["emulation"]
    measured_pct = (emulation["measured"] or {}).get("loss_pct")
    if not isinstance(measured_pct, (int, float)) or measured_pct < _LOSSY_PCT:
        return
    if emulation.get("problems") and measured_pct > ((emulation["requested"] or {}).get("loss_pct") or 0.0):
        return  # that is no profile's that was asked for: `_not_as_asked`
    lost = [
        Moment(
            ts_ns=drop.ts_ns,
            pod=drop.pod,
            event=f"{drop.protocol} {drop.source} -> {drop.target}:{drop.target_port} lost",
            shows="the emulated link lost it",
        )
        for drop in case.dropped
        if drop.location == _BY_A_PROGRAM and drop.ts_ns >= case.since_ns and acts(drop.ts_ns, troubles)
    ]
    lost += [
        Moment(ts_ns=one.ts_ns, pod=pod, event=f"{one.bytes} bytes sent again", shows="they did not arrive")
        for (pod, _), found in case.events.retransmissions.items()
        for one in found
        if pod in case.addresses and one.ts_ns >= case.since_ns and acts(one.ts_ns, troubles)
    ]
    if len(lost) < _LOST:
        return
    lost.sort()
    yield cause_of(
        "emulation.loss_profile",
        summary=f"the emulated links lose {measured_pct:.1f} % of packets, as was measured before the rounds,"
        " and packets that opened or carried the workload's connections were among them",
        strength=0.8,
        moments=(lost[0], lost[len(lost) // 2], lost[-1]),
        remedial=Remedial(words="lower the profile's loss, or raise the deadlines above what repairs take"),
        component="retransmission",
        details={"measured_loss_pct": measured_pct, "lost": len(lost)},
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
