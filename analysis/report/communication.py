"""What communication costs in a deployment that ran already: its users' questions, in their words.

How long it takes by client and round, what part of a round is polling, process starts, transfer and training,
who decides rounds and why, and how near the framework's timeouts are. From the ledger alone.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.ledger.model import ClientRound, Ledger, RoundLedger
from ztprobe.frameworks.timeouts import BOUNDS

__all__ = ("COMMUNICATION_COMPONENTS", "communication_csv", "communication_of")

# What a user calls it -> the ledger's components.
_PARTS = {
    "transfer": ("propagation", "transmission", "retransmission"),
    "polling": ("poll_wait",),
    "hubs": ("store_and_forward", "proxy"),
    "process_starts": ("task_start",),
    "training": ("compute",),
    "server": ("server",),
    "set_up": ("dns", "tcp_handshake", "tls_handshake", "http2_setup", "policy_drop"),
    "client_and_return_path": ("client_and_return_path",),
}
_COMMUNICATION = ("transfer", "polling", "hubs", "set_up")
COMMUNICATION_COMPONENTS = tuple(name for part in _COMMUNICATION for name in _PARTS[part])


def _seconds(nanoseconds: float) -> float:
    return round(nanoseconds / 1e9, 9)


def communication_of(ledger: Ledger, counted: Sequence[RoundLedger]) -> dict[str, Any]:
    """The report's ``communication``; nothing for a run of our own.

    :param counted: the rounds that count.
    """
    flow = ledger.flow
    if flow is None:
        return {}
    rows = [_row(ledger, one, client) for one in ledger.rounds for client in one.clients]
    rounds = len(ledger.rounds)
    found = {
        "path": list(flow.path),
        "one_sided": flow.one_sided,
        "shares": _shares(counted),
        "clients": _clients(rows, counted, ledger),
        "rounds": rows,
        "pollers": [
            {
                "who": one.who,
                "of": one.of,
                "polls": one.polls,
                "polls_per_round": round(one.polls / rounds, 9),
                "pause_s": _seconds(one.pause_ns),
            }
            for one in flow.pollers
        ],
        "decides": _decides(counted),
        "older_connections": flow.older_connections,
        "new_connections": flow.new_connections,
        "longest": {
            f"{what}_s": _seconds(flow.longest_ns[what]) if what in flow.longest_ns else None
            for what in BOUNDS
        },
        "timeouts": [dict(one) for one in flow.timeouts],
    }
    return {"communication": found}


def _parts(client: ClientRound) -> dict[str, int]:
    return {part: sum(client.components_ns[name] for name in names) for part, names in _PARTS.items()}


def _row(ledger: Ledger, one: RoundLedger, client: ClientRound) -> dict[str, Any]:
    parts = _parts(client)
    moved = [] if ledger.flow is None else ledger.flow.transfers
    mine = [each for each in moved if (each.round, each.client) == (one.round, client.client)]
    return {
        "round": one.round,
        "client": client.client,
        "critical": client.client == one.critical_client,
        "communication_s": _seconds(sum(parts[part] for part in _COMMUNICATION)),
        **{f"{part}_s": _seconds(value) for part, value in parts.items()},
        "down_bytes": sum(each.down_bytes for each in mine),
        "up_bytes": sum(each.up_bytes for each in mine),
    }


def _shares(counted: Sequence[RoundLedger]) -> dict[str, float]:
    total = sum(one.duration_ns for one in counted)
    found = {
        part: sum(one.components_ns[name] for one in counted for name in names)
        for part, names in _PARTS.items()
    }
    found["residual"] = sum(one.residual_ns for one in counted)
    return {part: round(value / total, 9) if total else 0.0 for part, value in found.items()}


def _clients(
    rows: Sequence[Mapping[str, Any]], counted: Sequence[RoundLedger], ledger: Ledger
) -> list[dict[str, Any]]:
    numbers = {one.round for one in counted}
    polls = {one.who: one for one in ledger.flow.pollers} if ledger.flow is not None else {}
    trips = ledger.flow.round_trips_ns if ledger.flow is not None else {}
    decided = Counter(one.critical_client for one in counted)
    found = []
    for client in dict.fromkeys(row["client"] for row in rows):
        mine = [row for row in rows if row["client"] == client and row["round"] in numbers]
        if not mine:
            continue
        poller = polls.get(client)
        found.append(
            {
                "client": client,
                "rounds_decided": decided[client],
                **{
                    f"{part}_median_s": round(statistics.median(row[f"{part}_s"] for row in mine), 9)
                    for part in ("communication", *_PARTS)
                },
                "down_bytes": int(statistics.median(row["down_bytes"] for row in mine)),
                "up_bytes": int(statistics.median(row["up_bytes"] for row in mine)),
                "poll_pause_s": None if poller is None else _seconds(poller.pause_ns),
                "round_trip_s": _seconds(trips[client]) if client in trips else None,
            }
        )
    return found


def _decides(counted: Sequence[RoundLedger]) -> dict[str, Any] | None:
    """Who ends the server's wait most often, and what takes it longer than the others."""
    named = Counter(one.critical_client for one in counted if one.critical_client)
    if not named:
        return None
    client, rounds = max(named.items(), key=lambda item: (item[1], item[0]))
    differences: Counter[str] = Counter()
    for one in counted:
        mine = next((each for each in one.clients if each.client == client), None)
        others = [each for each in one.clients if each.client != client and each.arrival_ns is not None]
        if mine is None or not others:
            continue
        for part, value in _parts(mine).items():
            differences[part] += round(value - statistics.mean(_parts(each)[part] for each in others))
    # What the server does comes first for everybody: it is a reason where nothing of the client's own is.
    own = {part: more_ns for part, more_ns in differences.items() if part != "server" and more_ns > 0}
    because, more_ns = max((own or differences).items(), key=lambda item: item[1], default=(None, 0))
    return {
        "client": client,
        "rounds": rounds,
        "of": len(counted),
        "ties": sum(one.tie for one in counted if one.critical_client == client),
        "because": because if more_ns > 0 else None,
        "more_s": _seconds(more_ns / max(1, len(counted))) if more_ns > 0 else 0.0,
    }


def communication_csv(communication: Mapping[str, Any]) -> str:
    """The times by client and round, one a line."""
    text = io.StringIO()
    if rows := communication["rounds"]:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
