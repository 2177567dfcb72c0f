"""What the workload itself logged of its options: unusual updates, privacy spent, who dropped out.

Told as the server told it. Nothing of the ledger rests on this; other workloads log none of it.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from analysis.report.wording import human_time, plural

__all__ = ("workload_lines", "workload_of")

Event = Mapping[str, Any]

# Without these an event says nothing.
_NEEDED = {
    "update_inspected": {"client_id", "unusual"},
    "privacy_spent": {"epsilon", "delta", "noise_multiplier"},
    "secure_sum": {"clients", "dropped"},
    "exchange_start": {"round", "kind", "time_monotonic_ns"},
    "exchange_end": {"round", "kind", "time_monotonic_ns"},
}


def workload_of(rounds: Iterable[Event]) -> dict[str, Any]:
    """The report's ``workload``: what was said of each kind, None where nothing was.

    :param rounds: the server's events as logged.
    """
    by_name: dict[str, list[Event]] = defaultdict(list)
    for event in rounds:
        name = event.get("event", "")
        if event.keys() >= _NEEDED.get(name, set()):
            by_name[name].append(event)
    started = by_name["run_start"][0] if by_name["run_start"] else {}
    return {
        "data_reader": started.get("data_reader"),
        "options": (started.get("config") or {}).get("options"),
        "updates": _updates(by_name["update_inspected"]),
        "privacy": _privacy(by_name["privacy_spent"]),
        "secure_aggregation": _secure(by_name),
    }


def _updates(looks: list[Event]) -> dict[str, Any] | None:
    if not looks:
        return None
    seen = Counter(one["client_id"] for one in looks)
    reasons: dict[str, Counter[str]] = {client: Counter() for client in sorted(seen)}
    flagged: Counter[str] = Counter()
    for one in looks:
        reasons[one["client_id"]].update(one["unusual"])
        flagged[one["client_id"]] += bool(one["unusual"])
    return {
        client: {"rounds": seen[client], "unusual_rounds": flagged[client], "reasons": dict(found)}
        for client, found in reasons.items()
    }


def _privacy(spent: list[Event]) -> dict[str, Any] | None:
    if not spent:
        return None
    return {name: spent[-1][name] for name in ("epsilon", "delta", "noise_multiplier")}


def _secure(by_name: Mapping[str, list[Event]]) -> dict[str, Any] | None:
    sums = by_name["secure_sum"]
    if not sums:
        return None
    started = {(e["round"], e["kind"]): e["time_monotonic_ns"] for e in by_name["exchange_start"]}
    took: dict[str, list[float]] = defaultdict(list)
    for event in by_name["exchange_end"]:
        if (begun_ns := started.get((event["round"], event["kind"]))) is not None:
            took[event["kind"]].append((event["time_monotonic_ns"] - begun_ns) / 1e9)
    return {
        "rounds": len(sums),
        "least_clients": min(one["clients"] for one in sums),
        "dropped": dict(Counter(client for one in sums for client in one["dropped"])),
        "exchange_median_s": {kind: round(statistics.median(times), 9) for kind, times in took.items()},
    }


def workload_lines(workload: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and sentence for each thing that was said; none for a report without ``workload``."""
    if updates := workload.get("updates"):
        yield "unusual updates", _updates_sentence(updates)
    if privacy := workload.get("privacy"):
        yield (
            "privacy",
            f"epsilon {privacy['epsilon']:.3g} at delta {privacy['delta']:.0e} was spent, with noise of "
            f"{privacy['noise_multiplier']:.3g} times the clip",
        )
    if secure := workload.get("secure_aggregation"):
        exchanges = ", ".join(
            f"{kind} {human_time(seconds)}" for kind, seconds in secure["exchange_median_s"].items()
        )
        dropped = ", ".join(f"{client} in {plural(n, 'round')}" for client, n in secure["dropped"].items())
        yield (
            "secure sums",
            f"of {secure['least_clients']} clients or more; dropped out: {dropped or 'nobody'}; exchanges "
            f"as the server logged them (median, training in MASKED): {exchanges}",
        )


def _updates_sentence(updates: Mapping[str, Any]) -> str:
    flagged = []
    for client, one in updates.items():
        if one["unusual_rounds"]:
            rounds = f"{one['unusual_rounds']} of {plural(one['rounds'], 'round')}"
            flagged.append(f"{client} in {rounds} ({', '.join(one['reasons'])})")
    return "; ".join(flagged) or f"none, of {plural(len(updates), 'client')}"
