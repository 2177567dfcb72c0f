"""A security level put in force while rounds went on: which rounds were under which, and who reconnected.

What was asked for is a round; what counts is when the level was seen to be in force. A policy lets
connections that there are go on, so who reconnects is told from connections alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis import statistics
from analysis.evidence.reader import read_events
from analysis.evidence.values import Wire
from analysis.ledger.handshakes import Setup, read_setup
from analysis.ledger.model import Ledger, RoundLedger
from analysis.report.wording import human_time, plural
from ztprobe.rundir.store import Run

__all__ = ("add_level_switch", "switch_lines", "switch_notes")


def add_level_switch(
    report: dict[str, Any], run: Run, ledger: Ledger, counted: Sequence[RoundLedger]
) -> None:
    """Add ``level_switch``, and to every round its ``security_levels``, if a switch was asked for."""
    told = run.meta.get("level_switch")
    if told is None:
        return
    at_ns, first_ns = _in_force_ns(told), ledger.rounds[0].start_ns if ledger.rounds else 0
    names = f"sec{run.meta['experiment']['level']}", f"sec{told['to_level']}"
    again = {} if at_ns is None else _connected_again(run, ledger, told["sidecars_ns"] or at_ns)
    whole_ns = at_ns
    if at_ns is not None and told["sidecars_ns"] is not None:
        # They stand between a client and the server from its next connection on.
        times_ns = [setup.syn_ns for setup in again.values() if setup is not None]
        whole_ns = max(at_ns, *times_ns) if times_ns and len(times_ns) == len(again) else None
    levels = {one.round: _levels(one, names, at_ns, whole_ns) for one in ledger.rounds}
    for entry in report["rounds"]:
        entry["security_levels"] = levels[entry["round"]]
    sides = {
        side: [one.duration_ns for one in counted if levels[one.round] == [name]]
        for side, name in zip(("before", "after"), names, strict=True)
    }
    report["level_switch"] = {
        "from": names[0],
        "to": names[1],
        "round": told["round"],
        "in_force_s": None if at_ns is None else _seconds(at_ns - first_ns),
        "after_due_s": None if at_ns is None else _seconds(at_ns - told["due_ns"]),
        "proofs": told["proofs"],
        "clients": [_client(name, setup, ledger, first_ns) for name, setup in again.items()],
        **{
            side: {"rounds": len(times), "median_s": _seconds(statistics.median_ns(times))}
            for side, times in sides.items()
        },
    }


def _levels(one: RoundLedger, names: tuple[str, str], at_ns: int | None, whole_ns: int | None) -> list[str]:
    """Under which levels a round was, in the order of time.

    :param whole_ns: from when on nothing was under the first level any more; None: never.
    """
    begun_before = whole_ns is None or one.start_ns < whole_ns
    ended_after = at_ns is not None and one.start_ns + one.duration_ns > at_ns
    return [names[0]] * begun_before + [names[1]] * ended_after


def _in_force_ns(told: Mapping[str, Any]) -> int | None:
    """When all of it was there; None: never, or it was not shown to be."""
    times_ns = [one for one in (told["sidecars_ns"], told["policies_ns"]) if one is not None]
    return max(times_ns) if times_ns and told["proofs"] else None


def _connected_again(run: Run, ledger: Ledger, at_ns: int) -> dict[str, Setup | None]:
    """Client -> its first connection to another pod after that; None: it kept the one that it had."""
    addresses = {pod["address"] for pod in run.meta["pods"]}
    opened: dict[str, list[Setup]] = defaultdict(list)
    for (pod, key), packets in read_events(run.events).packets.items():
        if isinstance(key, Wire) and {key.one.address, key.other.address} <= addresses:
            setup = read_setup(packets)
            if setup is not None and setup.syn_ns > at_ns and setup.established_ns is not None:
                opened[pod].append(setup)
    clients = sorted({client.client for one in ledger.rounds for client in one.clients})
    return {name: min(opened[name], key=lambda setup: setup.syn_ns, default=None) for name in clients}


def _client(name: str, again: Setup | None, ledger: Ledger, first_ns: int) -> dict[str, Any]:
    tls = None if again is None else again.tls
    return {
        "client": name,
        "reconnected_s": None if again is None else _seconds(again.syn_ns - first_ns),
        "reconnected_round": None if again is None else _round_at(ledger, again.syn_ns),
        "tls": None if tls is None else tls.version,
        "mutual": None if tls is None else tls.mutual,
    }


def _round_at(ledger: Ledger, at_ns: int) -> int | None:
    within = (one.round for one in ledger.rounds if 0 <= at_ns - one.start_ns < one.duration_ns)
    return next(within, None)


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
    mutual = sum(one["mutual"] == "yes" for one in again)
    tls = f", {mutual} with mutual TLS" if any(one["tls"] for one in again) else ""
    kept = f"; {len(clients) - len(again)} kept theirs" if len(again) < len(clients) else ""
    return f"{len(again)} of {plural(len(clients), 'client')} reconnected{where}{tls}{kept}"


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
