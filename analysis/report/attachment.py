"""What a report says of a run that was attached to: who took part, whence its rounds, what was not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from analysis.report.wording import human_time, plural
from ztprobe.rundir.store import Run

__all__ = ("attachment_lines", "attachment_of")

_SOURCES = {"events": "the application's events", "log": "the framework's log", "traffic": "the traffic"}
_FEW = 4


def attachment_of(run: Run) -> dict[str, dict[str, Any]]:
    """``attachment`` of report.json; empty: the run was brought up by ztprobe."""
    told = run.meta.get("attachment")
    if told is None:
        return {}
    owners = run.events.get("owners")
    older: Counter[str] = Counter()
    if owners is not None and len(owners):
        older.update(owners.loc[owners["older"] != 0, "participant"].tolist())
    return {
        "attachment": {
            "participants": [
                {
                    "name": one["name"],
                    "role": one["role"],
                    "target": one["target"],
                    "pod": one["pod"],
                    "address": one.get("address", ""),
                    "processes": len(one["processes"]),
                    "set_up_not_seen": older[one["name"]],
                }
                for one in told["participants"]
            ],
            "framework": {name: told["framework"].get(name) for name in ("name", "version", "evidence")},
            "rounds_from": dict(told["rounds_from"]),
            "seconds": round((told["detached_ns"] - told["attached_ns"]) / 1e9, 9),
        }
    }


def attachment_lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and sentence, for the lines below the table."""
    told = report["attachment"]
    by_role: dict[str, list[Mapping[str, Any]]] = {}
    for one in told["participants"]:
        by_role.setdefault(one["role"], []).append(one)
    parts = [f"{', '.join(one['name'] for one in by_role.get('server', ()))}"]
    parts += [
        f"{plural(len(by_role[role]), role)} ({_names(by_role[role])})"
        for role in ("hub", "client")
        if role in by_role
    ]
    framework = told["framework"]
    kind = (
        "" if framework["name"] == "generic" else f"{framework['name']} {framework['version'] or ''}".strip()
    )
    yield (
        "attached to",
        f"{kind + ': ' if kind else ''}{', '.join(parts)}; for {human_time(told['seconds'])}",
    )
    source = told["rounds_from"]
    exact = f", exact to {human_time(source['uncertainty_ns'] / 1e9)}" if source["uncertainty_ns"] else ""
    inferred = "inferred from" if source["source"] == "traffic" else "from"
    yield "rounds", f"{inferred} {_SOURCES[source['source']]}: {source['detail']}{exact}"
    if elsewhere := [one for one in told["participants"] if one["address"]]:
        yield (
            "one-sided",
            f"{_names(elsewhere)} on other machines, where nobody watches; a second agent there would tell "
            "their side of the path from their own time",
        )


def _names(participants: list[Mapping[str, Any]]) -> str:
    more = f" and {len(participants) - _FEW} more" if len(participants) > _FEW else ""
    return ", ".join(one["name"] for one in participants[:_FEW]) + more
