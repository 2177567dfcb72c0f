"""One plain sentence: the largest cause, and what to try.

A pure function of the report. Where a baseline was measured and rounds are clearly longer
than under it, the advice is for what makes them longer; else for the largest part of a
round. A sub-row is named where it is at least half of its component. Where the machine was
busy with something else, the advice is about that alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from analysis.report import contention_words
from analysis.report.wording import PART_NAMES, SUB_ROW_NAMES, human_percent, human_time

__all__ = ("diagnose",)

_DOMINATES = 0.5
# Below this part of a round, an overhead is not worth more than saying that it is small.
_NOTEWORTHY = 0.02
_RESIDUAL_LIMIT = 0.05
# So many mistaken losses per round shrink the window more than slow start does.
_REORDERED = 5

_KEEP_CHANNEL = "every round opens its channel anew, so keep it open between rounds"
_OPENED_AGAIN = "connections are opened within rounds, so find out who closes them (idle timeouts, keepalive)"

_ADVICE: dict[tuple[str, str | None], str] = {
    ("server", None): "profile what the server does between rounds",
    ("server", "send_preparation"): "serialise the model once a round instead of once a client",
    ("server", "behind_other_clients"): "send to all clients at once instead of one after the other",
    ("server", "aggregation"): "aggregate updates as they arrive, or give the server more CPU",
    ("server", "evaluation"): "evaluate less often, or beside the round instead of inside it",
    ("server", "cpu_wait"): "the server's threads wait for a CPU, so give it one of its own",
    (
        "compute",
        None,
    ): "training itself is the cost, so try fewer local steps, a smaller model or faster clients",
    (
        "compute",
        "cpu_wait",
    ): "training waits for a CPU, so give the clients more cores or run fewer on one node",
    ("dns", None): "resolve the name once and keep the channel, end the name with a dot, or lower ndots",
    ("proxy", None): "give the sidecars more CPU, or let the application do TLS itself",
    ("proxy", "cpu_wait"): "the sidecars wait for a CPU, so reserve one for them",
    ("propagation", None): (
        "every message pays the path's delay once, so only fewer messages a round or a nearer server help"
    ),
    ("transmission", None): "send fewer bytes, and look at the path's rate and the congestion control",
    ("transmission", "rate_or_queue"): (
        "the path's rate is used up, so send fewer bytes (compressed or quantised updates) or raise the rate"
    ),
    ("transmission", "congestion_window"): (
        "TCP starts slowly again after every idle phase, so keep the window warm "
        "(tcp_slow_start_after_idle=0), raise the initial window, or send fewer bytes"
    ),
    ("transmission", "receive_or_http2_window"): (
        "the receiver's window stops the sender: either the receiving application is slow to read, or "
        "tcp_rmem and gRPC's HTTP/2 window are too small for this path"
    ),
    ("transmission", "shared_egress"): (
        "clients queue for the same egress, so raise its rate, send fewer bytes, or stagger the clients"
    ),
    ("transmission", "jitter"): "late packets hold back the rest, so only a steadier path helps",
    ("retransmission", None): (
        "packets are lost and TCP waits for them, so mend the loss or try a congestion control "
        "that minds it less (BBR)"
    ),
    ("policy_drop", None): (
        "a NetworkPolicy blocks the path, so compare its ports and selectors with the recorded drops"
    ),
    ("store_and_forward", None): (
        "hubs and nodes hold messages that could go on, so give them CPU, or pass parts on as they come"
    ),
    ("poll_wait", None): (
        "messages lie ready and nobody asks for them, so shorten the intervals at which server and clients "
        "poll"
    ),
    ("task_start", None): (
        "a process is started for every task, so keep it from one task to the next, or import less in it"
    ),
    ("client_and_return_path", None): (
        "only the server's side was watched, so a second agent at the client would tell its training "
        "from its network"
    ),
    ("residual", None): "nothing seen explains it, so look at coverage and lost events before anything else",
}
_WARM_WINDOW = (
    "the congestion window grows too slowly for this path, so raise the initial window, "
    "try BBR, or send fewer bytes"
)
_MOSTLY = {
    "behind_other_clients": "waiting behind other clients",
    "rate_or_queue": "held back by the path's rate or a queue",
    "congestion_window": "held back by the congestion window",
    "receive_or_http2_window": "held back by the receiver's window",
    "shared_egress": "held back by the shared egress",
    "jitter": "waiting for packets that jitter made late",
}
_HANDSHAKES = ("tcp_handshake", "tls_handshake", "http2_setup")


def diagnose(report: Mapping[str, Any]) -> str:
    """The largest cause and what to try, from report.json's content, in one sentence."""
    if not report.get("rounds_counted", 1):
        return (
            f"No round has a breakdown, because less than {100 * report['coverage_floor']:g} % of events "
            "were seen: look at the channels on which events were lost before anything else."
        )
    if (contended := contention_words.advice(report)) is not None:
        return contended
    parts = {**report["components"], "residual": report["residual"]}
    shares = {name: part.get("share") or 0.0 for name, part in parts.items()}
    largest = max(shares, key=lambda name: shares[name])
    size = f"{human_time(parts[largest]['median_s'])}, {human_percent(shares[largest])}"
    overhead = report["overhead"]
    longer = _longer_by(report)
    if overhead is None or longer is None:
        row = _dominating(report["sub_rows"], largest, "share", shares[largest])
        clause = f"{_title(largest)} is the largest part of a round ({size}){_mostly(row)}"
        return (
            f"{clause}{_no_difference(overhead)}: {_advice(report, largest, row)}{_caveat(report, largest)}."
        )
    deltas = {name: entry["delta_s"] for name, entry in overhead["components"].items()}
    deltas["residual"] = overhead["residual"]["delta_s"]
    cause = max(deltas, key=lambda name: deltas[name])
    row = _dominating(overhead["sub_rows"], cause, "delta_s", deltas[cause])
    how_much = "most" if deltas[cause] > longer / 2 else "the largest part"
    more_than_all = deltas[cause] > longer  # something else takes less time than under the baseline
    delta, whole, than = human_time(deltas[cause]), human_time(longer), f"than under {overhead['baseline']}"
    if cause == largest:
        clause = f"{_title(cause)} is the largest part of a round ({size}){_mostly(row)}, and " + (
            f"takes {delta} longer {than}, a whole round {whole} longer"
            if more_than_all
            else f"{how_much} of what it takes longer {than} ({delta} of {whole})"
        )
    else:
        clause = (
            f"A round takes {whole} longer {than}, "
            + (
                f"{PART_NAMES[cause]} alone {delta} longer"
                if more_than_all
                else f"{how_much} of it {PART_NAMES[cause]} ({delta})"
            )
            + f"{_mostly(row)}, while {PART_NAMES[largest]} remains the largest part of a round "
            f"({human_percent(shares[largest])})"
        )
    return f"{clause}: {_advice(report, cause, row)}{_caveat(report, cause)}."


def _longer_by(report: Mapping[str, Any]) -> float | None:
    """Seconds a round is longer than under the baseline; None: not clearly or not noticeably so."""
    if report["overhead"] is None:
        return None
    duration = report["overhead"]["duration"]
    delta_s: float = duration["delta_s"]
    clear = duration["ci95"] is None or duration["ci95"][0] > 0
    return delta_s if clear and delta_s > _NOTEWORTHY * report["duration"]["mean_s"] else None


def _no_difference(overhead: Mapping[str, Any] | None) -> str:
    if overhead is None:
        return ""
    duration = overhead["duration"]
    if duration["ci95"] is not None and duration["ci95"][1] < 0:
        shorter = human_time(-duration["delta_s"])
        return f", and rounds are {shorter} shorter than under {overhead['baseline']}"
    how_clear = "too few rounds to tell the" if duration["ci95"] is None else "no clear"
    return (
        f", with {how_clear} difference from {overhead['baseline']} "
        f"({human_time(duration['delta_s'], signed=True)} a round)"
    )


def _dominating(sub_rows: Mapping[str, Any], name: str, key: str, whole: float) -> str | None:
    rows = {row: entry.get(key) or 0.0 for row, entry in sub_rows.get(name, {}).items()}
    # A rate that is used up shows as both: its own queue, and the others' bytes in it.
    narrow = {one: rows[one] for one in ("rate_or_queue", "shared_egress") if one in rows}
    if whole > 0 and sum(narrow.values()) >= _DOMINATES * whole:
        return max(narrow, key=lambda one: narrow[one])
    row = max(rows, key=lambda one: rows[one], default=None)
    return row if row is not None and whole > 0 and rows[row] >= _DOMINATES * whole else None


def _mostly(row: str | None) -> str:
    return "" if row is None else f", mostly {_MOSTLY.get(row, SUB_ROW_NAMES[row])}"


def _title(name: str) -> str:
    return PART_NAMES[name][0].upper() + PART_NAMES[name][1:]


def _advice(report: Mapping[str, Any], name: str, row: str | None) -> str:
    if name in _HANDSHAKES:
        reconnects = bool(report["options"].get("reconnect"))
        advice = _KEEP_CHANNEL if reconnects else _OPENED_AGAIN
        return advice + (", or allow TLS sessions to be resumed" if name == "tls_handshake" else "")
    lost, needless = _retransmitted(report) if row == "congestion_window" else (0, 0)
    if lost >= max(_REORDERED, needless):
        return (
            f"lost packets ({lost:.0f} a round in the median) keep the window small, so mend the loss, try a "
            "congestion control that minds it less (BBR), or send fewer bytes"
        )
    if needless >= _REORDERED:
        return (
            f"packets overtake each other, TCP takes that for loss ({needless:.0f} needless retransmissions "
            "a round in the median) and shrinks its window, so reduce the jitter, try a congestion control "
            "that minds it less (BBR), or send fewer bytes"
        )
    if row == "congestion_window" and _fact(report["facts"], "tcp_slow_start_after_idle") in (0, "0", False):
        return _WARM_WINDOW
    return _ADVICE.get((name, row)) or _ADVICE[name, None]


def _retransmitted(report: Mapping[str, Any]) -> tuple[float, float]:
    """The critical client's retransmissions a round, in the median: of lost packets, and needless ones."""
    critical = [
        client
        for one in report["rounds"]
        if one["counted"]
        for client in one["clients"]
        if client["critical"]
    ]
    if not critical:
        return 0, 0
    counted = ("retransmissions", "needless_retransmissions")
    lost, needless = (statistics.median(client[name] for client in critical) for name in counted)
    return lost, needless


def _fact(facts: Mapping[str, Any], name: str) -> Any:
    """A setting by the end of its name, at the top or one level down; None where it was not recorded."""
    for key, value in facts.items():
        if key.endswith(name):
            return value
        if isinstance(value, Mapping) and (found := _fact(value, name)) is not None:
            return found
    return None


def _caveat(report: Mapping[str, Any], cause: str) -> str:
    share = report["residual"].get("share") or 0.0
    if cause == "residual" or share <= _RESIDUAL_LIMIT:
        return ""
    return f" (but nothing explains {human_percent(share)} of the time)"
