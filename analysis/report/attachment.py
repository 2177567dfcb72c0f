"""What a report says of a run that was attached to: who took part, whence its rounds, what was not seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.report.wording import human_time, plural
from ztprobe.rundir.store import Run

__all__ = ("attachment_lines", "attachment_of", "set_up_words")

_SOURCES = {"events": "the application's events", "log": "the framework's log", "traffic": "the traffic"}
_FEW, _MANY = 4, 8
_NO_QDISC = "noqueue"


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
                    "came_s": _after_s(one.get("first_seen_ns", 0), told["attached_ns"]) or 0.0,
                    "left_s": _after_s(one.get("ended_ns", 0), told["attached_ns"]),
                }
                for one in told["participants"]
            ],
            "framework": {name: told["framework"].get(name) for name in ("name", "version", "evidence")},
            "rounds_from": dict(told["rounds_from"]),
            "unix_sockets": [
                {"participants": list(one["participants"]), "name": one["name"]}
                for one in told.get("unix_sockets", ())
            ],
            "seconds": round((told["detached_ns"] - told["attached_ns"]) / 1e9, 9),
        }
    }


def _after_s(moment_ns: int, attached_ns: int) -> float | None:
    return round((moment_ns - attached_ns) / 1e9, 9) if moment_ns > attached_ns else None


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
    yield from _coming_lines(told["participants"])
    if queues := _queue_words(report["emulation"].get("observed", {})):
        yield "queues", queues
    if told["unix_sockets"]:
        yield "not seen", _unix_words(told["unix_sockets"])
    elsewhere = [one for one in told["participants"] if one["address"]]
    if elsewhere and "communication" not in report:
        yield (
            "one-sided",
            f"{_names(elsewhere)} on other machines, where nobody watches; a second agent there would tell "
            "their side of the path from their own time",
        )


def set_up_words(report: Mapping[str, Any]) -> str:
    """Which connections' set-up was seen; that of some is in the rounds that they were opened in."""
    told = report.get("communication")
    # An end of each is the server's, a hub's or (of those between a client's own processes) a client's.
    ends = [one["set_up_not_seen"] for one in report["attachment"]["participants"]]
    older = told["older_connections"] if told else max(ends, default=0)
    said = [f"not seen of {plural(older, 'connection')} that were there before the trace"] if older else []
    if told and told["new_connections"]:
        said.append(f"seen of {told['new_connections']}, and told in the rounds that it fell into")
    return "; ".join(said)


def _coming_lines(participants: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    moved = [
        (one[when], f"{one['name']} {word} {human_time(one[when])} after the trace began")
        for one in participants
        for when, word in (("came_s", "came"), ("left_s", "ended"))
        if one[when]
    ]
    if moved:
        told = [words for _, words in sorted(moved)]
        more = f"; and {len(told) - _MANY} more" if len(told) > _MANY else ""
        yield "came and went", "; ".join(told[:_MANY]) + more


def _queue_words(observed: Mapping[str, Mapping[str, Any] | None]) -> str:
    """What stands at the participants' own interfaces; empty: not known."""
    found = [
        (one, " of ".join(filter(None, (one.get("interface"), pod))))
        for pod, first in observed.items()
        if first is not None
        for one in (first, *first.get("others", ()))
    ]
    if not found:
        return ""
    said: list[str] = []
    idle: dict[str, list[str]] = defaultdict(list)
    for one, where in found:
        if one["drops"] or one["overlimits"]:
            said.append(
                f"{one['kind']} at {where} held packets back {one['overlimits']:,} times and dropped "
                f"{one['drops']:,}, and sent {one['packets']:,}"
            )
        elif one["kind"] != _NO_QDISC:
            idle[one["kind"]].append(where)
    said = _cut(said, _MANY)
    said += [f"{kind} at {', '.join(_cut(at, _FEW))}, which held none back" for kind, at in idle.items()]
    words = "; ".join(said) or "none at the participants' own interfaces"
    return f"{words}; what shapes packets further on is not seen"


def _cut(words: list[str], most: int) -> list[str]:
    return words if len(words) <= most else [*words[:most], f"{len(words) - most} more"]


def _unix_words(sockets: Sequence[Mapping[str, Any]]) -> str:
    between: Counter[str] = Counter()
    for one in sockets:
        first, second = one["participants"]
        who = f"processes of {first}" if first == second else f"{first} and {second}"
        between[f"{who} ({one['name'] or 'a pair of sockets'})"] += 1
    told = [
        f"{what}{f', {count} times' if count > 1 else ''}" for what, count in sorted(between.items())[:_FEW]
    ]
    more = f"; and {len(between) - _FEW} more" if len(between) > _FEW else ""
    return (
        f"what passes over Unix sockets, which are no network: between {'; '.join(told)}{more}. Its time is "
        "with whoever held the message"
    )


def _names(participants: list[Mapping[str, Any]]) -> str:
    more = f" and {len(participants) - _FEW} more" if len(participants) > _FEW else ""
    return ", ".join(one["name"] for one in participants[:_FEW]) + more
