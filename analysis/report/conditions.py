"""What the emulated network was declared to be at each moment of a run; the ledger does not look at it.

One condition for the whole run, unless its profile has a schedule: then what was in force when
is in run.json, and a change counts from the moment at which it was confirmed on all pods. After
a change that failed nobody knows what some pods had, until the next one that came through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.ledger.model import RoundLedger
from analysis.report.wording import plural

__all__ = (
    "Conditions",
    "Span",
    "conditions_of",
    "late_in_round",
    "late_notes",
    "late_spans",
    "notes_of",
    "problems_of",
    "round_conditions",
    "rounds_under",
    "stall_notes",
)

_FOR_EVER_NS = 1 << 62
_LATE_MS = 100.0
_VALUES = ("delay_ms", "jitter_ms", "distribution", "loss_pct", "rate_mbit")
_NAMES = (
    ("delay_ms", "delay", "ms"),
    ("jitter_ms", "jitter", "ms"),
    ("loss_pct", "loss", "%"),
    ("rate_mbit", "rate", "Mbit/s"),
)


@dataclass(frozen=True, kw_only=True)
class Span:
    """One condition, from a moment to another (CLOCK_MONOTONIC); values as in a profile."""

    from_ns: int
    to_ns: int
    known: bool = True
    step: int | None = None  # of the schedule, from 0
    delay_ms: float | None = None
    jitter_ms: float | None = None
    distribution: str | None = None
    loss_pct: float | None = None
    rate_mbit: float | None = None


@dataclass(frozen=True)
class Conditions:
    """Conditions one after another, without a hole."""

    spans: tuple[Span, ...] = (Span(from_ns=0, to_ns=_FOR_EVER_NS),)
    scheduled: bool = False
    others: tuple[Span, ...] = ()  # what somebody else put on some of the pods beside it, in any order

    def between(self, from_ns: int, to_ns: int) -> list[Span]:
        """What was in force then, in time order; of a moment, what was in force at it."""
        return [
            span for span in self.spans if span.from_ns < max(to_ns, from_ns + 1) and from_ns < span.to_ns
        ]


def conditions_of(meta: Mapping[str, Any]) -> Conditions:
    """The conditions of a run, from run.json's content."""
    emulation = meta["emulation"]
    others = tuple(span for other in emulation.get("others", ()) for span in _other_spans(other))
    schedule = emulation.get("schedule")
    if not schedule:
        requested = emulation["requested"] or {}
        values: dict[str, Any] = {key: requested.get(key) for key in _VALUES}
        return Conditions((Span(from_ns=0, to_ns=_FOR_EVER_NS, **values),), others=others)
    begun: list[dict[str, Any]] = []
    for change in schedule["changes"]:
        known = change["at_ns"] is not None
        values = {key: change[key] if known else None for key in _VALUES}
        from_ns = int(change["at_ns"] if known else change["from_ns"])
        begun.append(
            {"from_ns": from_ns, "known": known, "step": change["step"] if known else None, **values}
        )
    begun[0]["from_ns"] = 0  # the first step was in force before the schedule began
    ends_ns = [one["from_ns"] for one in begun[1:]] + [_FOR_EVER_NS]
    spans = [Span(to_ns=end_ns, **one) for one, end_ns in zip(begun, ends_ns, strict=True)]
    lasting = tuple(span for span in spans if span.to_ns > span.from_ns)
    return Conditions(lasting, scheduled=True, others=others)


def round_conditions(conditions: Conditions, start_ns: int, duration_ns: int) -> list[dict[str, Any]]:
    """What was in force during a round, in seconds from its beginning."""
    end_ns = start_ns + duration_ns
    return [
        {
            "from_s": round((max(span.from_ns, start_ns) - start_ns) / 1e9, 9),
            "to_s": round((min(span.to_ns, end_ns) - start_ns) / 1e9, 9),
            "step": span.step,
            **{key: getattr(span, key) for key in _VALUES},
        }
        for span in conditions.between(start_ns, end_ns)
    ]


def _other_spans(other: Mapping[str, Any]) -> list[Span]:
    changes = other["changes"]
    end_ns = _FOR_EVER_NS if other["to_ns"] is None else other["to_ns"]
    ends_ns = [*(change["at_ns"] for change in changes[1:]), end_ns]
    return [
        Span(from_ns=change["at_ns"], to_ns=until_ns, **{key: change[key] for key in _VALUES})
        for change, until_ns in zip(changes, ends_ns, strict=True)
    ]


def rounds_under(other: Mapping[str, Any], rounds: Sequence[RoundLedger]) -> list[int]:
    """The rounds during which somebody else's profile (of ``emulation.others``) was on pods."""
    return [
        one.round
        for one in rounds
        if other["from_ns"] < one.start_ns + one.duration_ns
        and (other["to_ns"] is None or one.start_ns < other["to_ns"])
    ]


def notes_of(others: Iterable[Mapping[str, Any]], rounds: Sequence[RoundLedger]) -> list[str]:
    """What somebody else put on pods while rounds went on, for a report's notes."""
    return [
        f"{_other_words(other)} during {_range_words(numbers)}, beside this run's own profile: medians and"
        " overhead hold what it cost."
        for other in others
        if (numbers := rounds_under(other, rounds))
    ]


def late_spans(emulation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """When the delay line let packets go late, by its own account (``from_ns``, ``to_ns``, ``worst_ns``)."""
    line = (emulation.get("stats") or {}).get("delay_line", {})
    return list(line.get("late", {}).get("spans", ()))


def late_in_round(spans: Iterable[Mapping[str, Any]], one: RoundLedger) -> int | None:
    """How late it was at worst during a round, in nanoseconds; None: it was not."""
    end_ns = one.start_ns + one.duration_ns
    return max(
        (span["worst_ns"] for span in spans if span["from_ns"] < end_ns and one.start_ns < span["to_ns"]),
        default=None,
    )


def late_notes(spans: Sequence[Mapping[str, Any]], rounds: Sequence[RoundLedger]) -> list[str]:
    """What the delay line's lateness means for the rounds, for a report's notes."""
    late = {one.round: worst for one in rounds if (worst := late_in_round(spans, one)) is not None}
    if not late:
        return []
    numbers = ", ".join(map(str, list(late)[:10])) + (", …" if len(late) > 10 else "")
    return [
        f"The delay line let packets go up to {max(late.values()) / 1e6:.0f} ms late in "
        f"{'round' if len(late) == 1 else 'rounds'} {numbers} (it was stopped, or had no CPU): what they cost"
        " beyond the profile is the emulator's, not the network's."
    ]


def _other_words(other: Mapping[str, Any]) -> str:
    """``net1 (delay 20 ms, jitter 5 ms) was on egress of 5 pods (lease 1f2e3d)``."""
    first, *changes = other["changes"]
    values = ", ".join(f"{name} {first[key]:.6g} {unit}" for key, name, unit in _NAMES if first[key])
    whose = other["pods"][0] if len(other["pods"]) == 1 else f"{len(other['pods'])} pods"
    towards = f" towards {other['to']}" if other["to"] is not None else ""
    changed = f", changed {plural(len(changes), 'time')}" if changes else ""
    way = "both directions" if other["direction"] == "both" else other["direction"]
    return (
        f"{other['profile']}{f' ({values})' if values else ''} was on {way} of"
        f" {whose}{towards} (lease {other['lease']}{changed})"
    )


def _range_words(numbers: Sequence[int]) -> str:
    first, last = min(numbers), max(numbers)
    return f"round {first}" if first == last else f"rounds {first} to {last}"


def problems_of(schedule: Mapping[str, Any]) -> list[str]:
    """What went wrong with the changes, for a report's notes."""
    said = []
    changes: Sequence[Mapping[str, Any]] = schedule["changes"]
    if failed := [change for change in changes if change["at_ns"] is None]:
        said.append(
            f"{len(failed)} of {len(changes) - 1} changes of the network could not be put into force, so"
            f" what was in force after them is not known; the first: {failed[0]['error']}."
        )
    if skipped := sum(change["skipped"] for change in changes):
        said.append(
            f"{plural(skipped, 'step')} of the network's schedule {'was' if skipped == 1 else 'were'} left"
            " out: the time had passed."
        )
    late_ms = [(c["at_ns"] - c["due_ns"]) / 1e6 for c in changes if c["at_ns"] is not None]
    if late := [value for value in late_ms if value > _LATE_MS]:
        count = plural(len(late), "change")
        said.append(f"{count} of the network came late, by {max(late):.0f} ms at most.")
    return said


def stall_notes(stalls: Iterable[Mapping[str, Any]]) -> list[str]:
    """Times in which nothing went on, each as it was said then, for a report's notes."""
    return [f"Stalled: {stall['words']}." for stall in stalls]
