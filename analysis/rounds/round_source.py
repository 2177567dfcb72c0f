"""The rounds of a deployment that ran already, settled before anything else is made of its run.

In this order: the application's events; the framework's log where its lines carry a clock; the log's names
with the traffic's times, where they carry none; the traffic alone, which is then said to be inferred.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.rounds.traffic_pattern import InferredRound, infer_rounds
from analysis.rounds.transfers import seen_of
from ztprobe.frameworks.source import RoundsFrom
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run

__all__ = ("named", "settled")

# A clock that is as good as this is taken as it is: it is how exact boundaries have to be.
EXACT_NS = 50_000_000
# Between a line of a log and the first byte that follows from it, either may be first.
_BESIDE_NS = 100_000_000

Event = dict[str, Any]


def settled(run: Run) -> Run:
    """The run with its rounds, and with what they are from in ``attachment`` of its run.json.

    :raises RunDirError: its tables are damaged.
    """
    told = run.meta.get("attachment", {}).get("rounds_from", {})
    if told.get("source") not in ("log", "traffic") or not len(run.events.get("turns", ())):
        return run
    if told["source"] == "log" and told["uncertainty_ns"] <= EXACT_NS:
        return run
    seen = seen_of(run)
    # A round that is cut off has a name as well, which would else be given to the one beside it.
    begun = infer_rounds(seen.at_clients, seen.at_server, also_cut_off=True)
    rounds = [one for one in begun if one.whole]
    if not rounds:
        return run
    clock = Clock.of_run(run.meta)
    pairs = named(run.rounds, begun) if told["source"] == "log" else []
    if pairs := [(name, one) for name, one in pairs if one.whole]:
        detail = f"{told['detail']}; it names the rounds, their times are the traffic's"
        return _with(run, [event for pair in pairs for event in _events(*pair, clock)], "log", detail, pairs)
    pairs = [(Named(number, {}), one) for number, one in enumerate(rounds, 1)]
    events = [event for pair in pairs for event in _events(*pair, clock)]
    detail = "inferred from the largest messages between the server and its clients"
    return _with(run, events, "traffic", detail, pairs)


@dataclass(frozen=True)
class Named:
    """A round as a log told it: its number, and what was said of it."""

    number: int
    facts: Mapping[str, Any]
    received_ns: int = 0
    uncertainty_ns: int = 0


def named(events: Sequence[Event], rounds: Sequence[InferredRound]) -> list[tuple[Named, InferredRound]]:
    """The rounds that both the log and the traffic tell, in the order of time.

    Each line was received some time after it was written. Where that tells lines apart, a round is the one
    that began then, and one whose line was late the only one between its neighbours; where lines came all at
    once (whoever prints to a pipe keeps them back, often to the very end), the last round that is told is the
    last that had begun by then, and so on backwards.
    """
    told = _told(events)
    by_time = _by_time(told, rounds)
    if len(by_time) * 2 > min(len(told), len(rounds)):
        return _completed(by_time, told, rounds)
    found: list[tuple[Named, InferredRound]] = []
    left = list(rounds)
    for one in reversed(told):
        while left and left[-1].start_ns > one.received_ns + _BESIDE_NS:
            left.pop()
        if left:
            found.append((one, left.pop()))
    return found[::-1]


def _told(events: Sequence[Event]) -> list[Named]:
    starts = {event["round"]: event for event in events if event["event"] == "round_start"}
    facts: dict[int, dict[str, Any]] = {number: {} for number in starts}
    for event in events:
        if event.get("round") in facts:
            known = {
                name: event[name]
                for name in ("of", "named", "clients", "results", "failures")
                if name in event
            }
            # Training comes before evaluation, which has clients and results of its own.
            facts[event["round"]] = known | facts[event["round"]]
    return [
        Named(number, facts[number], event["time_monotonic_ns"], event.get("uncertainty_ns", 0))
        for number, event in sorted(starts.items())
    ]


def _by_time(told: Sequence[Named], rounds: Sequence[InferredRound]) -> list[tuple[Named, InferredRound]]:
    found = []
    position = 0
    for one in told:
        earliest_ns = one.received_ns - one.uncertainty_ns - _BESIDE_NS
        while (
            position < len(rounds)
            and rounds[position].start_ns < earliest_ns - rounds[position].start_uncertainty_ns
        ):
            position += 1
        if (
            position < len(rounds)
            and rounds[position].start_ns
            <= one.received_ns + _BESIDE_NS + rounds[position].start_uncertainty_ns
        ):
            found.append((one, rounds[position]))
            position += 1
    return found


def _completed(
    pairs: Sequence[tuple[Named, InferredRound]], told: Sequence[Named], rounds: Sequence[InferredRound]
) -> list[tuple[Named, InferredRound]]:
    """With what came too late for its uncertainty, where as many are told as were seen between two others."""
    known = [(told.index(name), list(rounds).index(one)) for name, one in pairs]
    found: list[tuple[Named, InferredRound]] = []
    before = (-1, -1)
    for after in (*known, (len(told), len(rounds))):
        names, seen = told[before[0] + 1 : after[0]], rounds[before[1] + 1 : after[1]]
        late = list(zip(names, seen, strict=False))
        if len(names) == len(seen) and all(
            one.start_ns <= name.received_ns + _BESIDE_NS for name, one in late
        ):
            found += late
        if after[0] < len(told):
            found.append((told[after[0]], rounds[after[1]]))
        before = after
    return found


def _events(name: Named, one: InferredRound, clock: Clock) -> list[Event]:
    return [
        {
            "event": event,
            "round": name.number,
            "time_unix_ns": clock.unix_ns(time_ns),
            "time_monotonic_ns": time_ns,
            "time_from": "traffic",
            "uncertainty_ns": uncertainty_ns,
            **facts,
        }
        for event, time_ns, uncertainty_ns, facts in (
            ("round_start", one.start_ns, one.start_uncertainty_ns, {}),
            ("round_end", one.end_ns, one.end_uncertainty_ns, name.facts),
        )
    ]


def _with(
    run: Run, events: list[Event], source: str, detail: str, pairs: Sequence[tuple[Named, InferredRound]]
) -> Run:
    uncertainty_ns = max(max(one.start_uncertainty_ns, one.end_uncertainty_ns) for _, one in pairs)
    rounds_from = RoundsFrom(source=source, uncertainty_ns=uncertainty_ns, detail=detail)
    attachment = {**run.meta["attachment"], "rounds_from": rounds_from.as_dict()}
    return dataclasses.replace(run, rounds=events, meta={**run.meta, "attachment": attachment})
