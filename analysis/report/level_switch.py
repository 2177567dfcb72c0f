"""A security level put in force while rounds went on: which rounds were under which, and who reconnected.

What was asked for is a round; what counts is when the level was seen to be in force. A policy lets
connections that there are go on, so who reconnects is told from connections alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis import statistics
from analysis.ledger.model import Ledger, RoundLedger
from analysis.report.wording import human_time, plural
from ztprobe.rundir.store import Run

__all__ = ("level_switch_of", "levels_of_rounds", "switch_lines", "switch_notes")

_DNS_PORT = 53


def level_switch_of(run: Run, ledger: Ledger, counted: Sequence[RoundLedger]) -> dict[str, Any] | None:
    """``level_switch`` of report.json; None: the level was one throughout, as far as was asked."""
    told = run.meta.get("level_switch")
    if told is None:
        return None
    at_ns, first_ns = told["at_ns"], ledger.rounds[0].start_ns if ledger.rounds else 0
    levels = levels_of_rounds(run, ledger.rounds)
    began = f"sec{run.meta['experiment']['level']}"
    sides = {
        side: [one.duration_ns for one in counted if levels[one.round] == [level]]
        for side, level in (("before", began), ("after", f"sec{told['to_level']}"))
    }
    return {
        "from": began,
        "to": f"sec{told['to_level']}",
        "round": told["round"],
        "in_force_s": None if at_ns is None else _seconds(at_ns - first_ns),
        "after_due_s": None if at_ns is None else _seconds(at_ns - told["due_ns"]),
        "proofs": told["proofs"],
        "clients": [] if at_ns is None else _reconnections(run, ledger, at_ns, first_ns),
        **{
            side: {"rounds": len(times), "median_s": _seconds(statistics.median_ns(times))}
            for side, times in sides.items()
        },
    }


def levels_of_rounds(run: Run, rounds: Sequence[RoundLedger]) -> dict[int, list[str]]:
    """Round -> the levels in force during it, in the order of time; empty: it was one throughout."""
    told = run.meta.get("level_switch")
    if told is None:
        return {}
    before, after = f"sec{run.meta['experiment']['level']}", f"sec{told['to_level']}"
    at_ns = told["at_ns"]
    found = {}
    for one in rounds:
        begun_before = at_ns is None or one.start_ns < at_ns
        ended_after = at_ns is not None and one.start_ns + one.duration_ns > at_ns
        found[one.round] = [before] * begun_before + [after] * ended_after
    return found


def _reconnections(run: Run, ledger: Ledger, at_ns: int, first_ns: int) -> list[dict[str, Any]]:
    """Of each client, when it first connected to another pod once the level was in force."""
    connections = run.events.get("connections")
    if connections is None:
        return []
    addresses = {pod["name"]: pod["address"] for pod in run.meta["pods"]}
    opened = connections[
        connections["remote"].isin(list(addresses.values()))
        & (connections["local"] != connections["remote"])
        & (connections["remote_port"] != _DNS_PORT)
        & (connections["opened_ns"] > at_ns)
    ]
    clients = sorted({client.client for one in ledger.rounds for client in one.clients})
    found = []
    for client in clients:
        mine = opened[opened["pod"] == client]["opened_ns"]
        again_ns = int(mine.min()) if len(mine) else None
        within = next(
            (
                one.round
                for one in ledger.rounds
                if again_ns is not None and one.start_ns <= again_ns < one.start_ns + one.duration_ns
            ),
            None,
        )
        found.append(
            {
                "client": client,
                "reconnected_s": None if again_ns is None else _seconds(again_ns - first_ns),
                "reconnected_round": within,
            }
        )
    return found


def _seconds(value_ns: float | None) -> float | None:
    return None if value_ns is None else round(value_ns / 1e9, 9)


def _sentence(switch: Mapping[str, Any]) -> str:
    if switch["in_force_s"] is None:
        return f"{switch['to']} was to be in force from round {switch['round']} on, and never was"
    proofs = switch["proofs"]
    passed = sum(proof["passed"] for proof in proofs)
    proven = "proven" if proofs and passed == len(proofs) else "NOT proven"
    return (
        f"{switch['to']} in force {human_time(switch['after_due_s'])} into round {switch['round']}, {proven}:"
        f" {passed} of {plural(len(proofs), 'check')} passed"
    )


def _connections(switch: Mapping[str, Any]) -> str:
    clients = switch["clients"]
    again = [one for one in clients if one["reconnected_s"] is not None]
    if not again:
        return f"{plural(len(clients), 'client')} kept the connection" if clients else "no client was seen"
    numbers = sorted({one["reconnected_round"] for one in again if one["reconnected_round"] is not None})
    where = f", first in round {numbers[0]}" if numbers else ""
    kept = f"; {len(clients) - len(again)} kept theirs" if len(again) < len(clients) else ""
    return f"{len(again)} of {plural(len(clients), 'client')} reconnected{where}{kept}"


def switch_lines(switch: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and sentence below a report's table."""
    yield "level switched", f"{_sentence(switch)}; {_connections(switch)}"
    sides = [
        f"{human_time(switch[side]['median_s'])} under {switch[level]}"
        f" ({plural(switch[side]['rounds'], 'round')})"
        for side, level in (("before", "from"), ("after", "to"))
    ]
    yield "", f"median round {', '.join(sides)}"


def switch_notes(switch: Mapping[str, Any] | None) -> list[str]:
    """What a reader should know before the numbers."""
    if switch is None:
        return []
    if switch["in_force_s"] is None:
        return [f"{_sentence(switch)}."]
    return [
        f"The security level changed in round {switch['round']} ({switch['from']} to {switch['to']}):"
        " medians and overhead hold rounds of both."
    ]
