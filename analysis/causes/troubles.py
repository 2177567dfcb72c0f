"""What went wrong in a run, before anybody asks why: rounds that failed, stalled or were clearly slow.

Without one of these there is nothing to explain, whatever packets were lost on the way: a profile that
loses packets is supposed to. Slow means slow among its peers, the run's other rounds; a run all of whose
rounds take long is under a slow network, and not broken.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.causes.attached_troubles import troubles_of_attached
from analysis.causes.case import Case
from analysis.causes.findings import Trouble

__all__ = ("acts", "troubles_of")

# A round is slow if it takes twice its peers' median, and longer than it by what nobody overlooks.
_SLOW_TIMES = 2.0
_SLOW_S = 3.0
_PEERS = 3
_LEAD_NS = 3_000_000_000  # what led to a trouble may have come this long before it
# Round 1 warms everything up.
_FIRST_TIMES = 4.0
_FIRST_S = 10.0
# Clients connect within a few seconds, on the slowest profile too.
_SET_UP_S = 8.0


def acts(ts_ns: int, troubles: Sequence[Trouble]) -> bool:
    """Whether something happened in a trouble, or shortly before it."""
    return any(one.from_ns - _LEAD_NS <= ts_ns <= one.to_ns for one in troubles)


def troubles_of(case: Case) -> list[Trouble]:
    """All of them, by time."""
    marks: dict[int, dict[str, int]] = {}
    for event in case.run.rounds:
        if isinstance(event.get("round"), int):
            marks.setdefault(event["round"], {}).setdefault(event["event"], event["time_monotonic_ns"])
    rounds = {number: at for number, at in sorted(marks.items()) if "round_start" in at}
    found = [*_set_up(case, rounds), *_failed(case, rounds), *_missing(case, rounds)]
    found += _slow(case, rounds, {number for one in found for number in one.rounds})
    found += _under_way(case, rounds)
    found += _stalls(case, rounds)
    if case.is_attached:
        found += troubles_of_attached(case, rounds)
    return sorted(found, key=lambda one: one.from_ns)


def _set_up(case: Case, rounds: Mapping[int, Mapping[str, int]]) -> list[Trouble]:
    if not case.since_ns or case.is_attached:  # nobody knows when those clients were started
        return []
    begun_ns = min((at["round_start"] for at in rounds.values()), default=None)
    took_s = ((begun_ns or case.until_ns) - case.since_ns) / 1e9
    if begun_ns is not None and took_s < _SET_UP_S:
        return []
    if begun_ns is None and case.failed is None and (not case.goes_on or took_s < _SET_UP_S):
        return []
    ready = {e.get("client_id") for e in case.run.rounds if e["event"] == "client_ready"}
    missing = tuple(client for client in case.clients if client not in ready) if begun_ns is None else ()
    late = f"round 1 began {took_s:.0f} s after the clients were started"
    never = f"no round began within {took_s:.0f} s"
    if missing:
        never += (
            f"; {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''} did not reach the server"
        )
    return [
        Trouble(
            kind="set-up",
            rounds=(0,),
            from_ns=case.since_ns,
            to_ns=begun_ns or case.until_ns,
            pods=missing,
            words=never if begun_ns is None else late,
        )
    ]


def _failed(case: Case, rounds: Mapping[int, Mapping[str, int]]) -> list[Trouble]:
    if case.failed is None or case.is_attached:  # there it is the trace that failed
        return []
    at_ns = int(case.run.meta["failed"]["at_ns"])
    open_rounds = [number for number, at in rounds.items() if "round_end" not in at]
    found = []
    for number in open_rounds:
        came = {e["client_id"] for e in _of_round(case, number, "update_received")}
        found.append(
            Trouble(
                kind="unfinished",
                rounds=(number,),
                from_ns=rounds[number]["round_start"],
                to_ns=at_ns,
                pods=tuple(client for client in case.clients if client not in came),
                words=f"round {number} did not end",
            )
        )
    if not open_rounds and (rounds or not case.since_ns):
        since_ns = max((at["round_end"] for at in rounds.values()), default=_begin_ns(case))
        words = "the run failed" if rounds else "the run failed before the clients were started"
        found.append(Trouble(kind="failed", rounds=(), from_ns=since_ns, to_ns=at_ns, pods=(), words=words))
    return found


def _begin_ns(case: Case) -> int:
    return min(int(sample["time_monotonic_ns"]) for sample in case.run.meta["clock_samples"])


def _of_round(case: Case, number: int, event: str) -> list[dict[str, Any]]:
    return [e for e in case.run.rounds if e["event"] == event and e.get("round") == number]


def _missing(case: Case, rounds: Mapping[int, Mapping[str, int]]) -> list[Trouble]:
    """Rounds whose deadline cut somebody off."""
    found = []
    for number, at in rounds.items():
        missing = tuple(str(e.get("client_id")) for e in _of_round(case, number, "client_missing"))
        if missing and "round_end" in at:
            found.append(
                Trouble(
                    kind="missing",
                    rounds=(number,),
                    from_ns=at["round_start"],
                    to_ns=at.get("wait_end", at["round_end"]),
                    pods=missing,
                    words=f"round {number} ended without {', '.join(missing)}",
                )
            )
    return found


def _slow(case: Case, rounds: Mapping[int, Mapping[str, int]], known: set[int]) -> list[Trouble]:
    durations_s = {
        n: (at["round_end"] - at["round_start"]) / 1e9 for n, at in rounds.items() if "round_end" in at
    }
    first = min(durations_s, default=0)
    found = []
    for number, took_s in durations_s.items():
        peers = [s for n, s in durations_s.items() if n not in (number, first)]
        if number in known or len(durations_s) < 2:
            continue
        # Of few rounds the fastest, be it the first: what was fast once can be.
        others = [s for n, s in durations_s.items() if n != number]
        usual_s = statistics.median(peers) if len(peers) >= _PEERS else min(others)
        times, more_s = (_FIRST_TIMES, _FIRST_S) if number == first else (_SLOW_TIMES, _SLOW_S)
        if took_s > times * usual_s and took_s > usual_s + more_s:
            found.append(
                Trouble(
                    kind="slow",
                    rounds=(number,),
                    from_ns=rounds[number]["round_start"],
                    to_ns=rounds[number]["round_end"],
                    pods=_last(case, number),
                    words=f"round {number} took {took_s:.1f} s, and its peers {usual_s:.1f} s",
                )
            )
    return found


def _under_way(case: Case, rounds: Mapping[int, Mapping[str, int]]) -> list[Trouble]:
    """The round of a run that goes on, if it takes long by now."""
    open_rounds = [number for number, at in rounds.items() if "round_end" not in at]
    ended_s = [(at["round_end"] - at["round_start"]) / 1e9 for at in rounds.values() if "round_end" in at]
    if not case.goes_on or not open_rounds or not ended_s:
        return []
    number = open_rounds[-1]
    usual_s = statistics.median(ended_s[1:]) if len(ended_s) > _PEERS else min(ended_s)
    begun_ns = rounds[number]["round_start"]
    took_s = (case.until_ns - begun_ns) / 1e9
    if took_s <= _SLOW_TIMES * usual_s or took_s <= usual_s + _SLOW_S:
        return []
    came = {e["client_id"] for e in _of_round(case, number, "update_received")}
    missing = tuple(client for client in case.clients if client not in came)
    words = f"round {number} has gone on for {took_s:.1f} s, and its peers took {usual_s:.1f} s"
    return [
        Trouble(
            kind="unfinished",
            rounds=(number,),
            from_ns=begun_ns,
            to_ns=case.until_ns,
            pods=missing,
            words=f"{words}; {', '.join(missing)} did not contribute so far" if missing else words,
        )
    ]


def _last(case: Case, number: int) -> tuple[str, ...]:
    """Who came last, by the server's log."""
    came = [(e["time_monotonic_ns"], str(e["client_id"])) for e in _of_round(case, number, "update_received")]
    last = max(came)[1] if came else ""
    # A deployment that others brought up has names of its own for its clients.
    return (last,) if last and (last in case.clients or not case.is_attached) else ()


def _stalls(case: Case, rounds: Mapping[int, Mapping[str, int]]) -> list[Trouble]:
    """What was noticed while the run went on."""
    found = []
    for stall in case.run.meta.get("stalls", ()):
        number = stall["round"]
        if number is None and case.is_attached:
            # Nobody told of rounds; those of the traffic tell a stall from having nothing to do.
            number = next((n for n, at in rounds.items() if _holds(at, int(stall["since_ns"]))), None)
            if number is None:
                continue
        found.append(
            Trouble(
                kind="stall",
                rounds=() if number is None else (int(number),),
                from_ns=int(stall["since_ns"]),
                to_ns=int(stall["at_ns"]),
                pods=tuple(pod for pod in stall["waits_for"] if pod in case.clients),
                words=str(stall["words"]),
            )
        )
    return found


def _holds(marks: Mapping[str, int], ts_ns: int) -> bool:
    return marks["round_start"] <= ts_ns < marks.get("round_end", ts_ns + 1)
