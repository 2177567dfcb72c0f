"""Emulation: a profile that makes a deadline impossible, overflows, or is not what the pods got."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis.causes.black_holes import recognise_black_holes
from analysis.causes.case import Case
from analysis.causes.deadlines import recognise_deadlines
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.evidence.values import Drop

__all__ = ("recognise",)

_OVERFLOWS = 20
_OFF_MS, _OFF_SHARE = 5.0, 0.3


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Everything of this class, and what deadlines cut off for other reasons."""
    yield from recognise_deadlines(case, troubles)
    if not case.is_attached:  # there nothing is emulated
        yield from _overflow(case, troubles)
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
