"""The page's timeline: every client's way through a round, as numbers that the page's own script draws.

Microseconds, not seconds, and component numbers, not names, keep 50 rounds of 5 clients far below 1 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.ledger.model import COMPONENTS, MARKS
from analysis.report.figures import COLOURS
from analysis.report.wording import PART_NAMES

__all__ = ("timeline_data",)

_PARTS = (*COMPONENTS, "residual")
_NUMBERS = {part: number for number, part in enumerate(_PARTS)}
_MARK_WORDS = {
    "retransmission": "sent again",
    "drop": "dropped packet",
    "handshake": "connection opened",
    "cpu_wait": "waiting for a CPU",
}
_RESIDUAL = _NUMBERS["residual"]  # also what no component of this version is


def timeline_data(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the script needs; None for a report without segments.

    ``rounds`` are [number, duration, critical client's index or -1, clients], a client is
    [arrival or -1, segments, marks], segments are flat: component number, start, length, and so on; so are
    marks: number of the kind, start, length, how many.
    All times are whole microseconds from the round's start.
    """
    names = list(dict.fromkeys(c["client"] for one in report["rounds"] for c in one["clients"]))
    rounds = []
    for one in report["rounds"]:
        clients: list[list[Any]] = [[-1, [], []] for _ in names]
        critical = -1
        for client in one["clients"]:
            index = names.index(client["client"])
            if client["critical"]:
                critical = index
            arrival_s = client["arrival_s"]
            flat: list[int] = []
            for part, start_s, end_s in client.get("segments", ()):
                start_us = round(start_s * 1e6)
                flat += [_NUMBERS.get(part, _RESIDUAL), start_us, round(end_s * 1e6) - start_us]
            marks: list[int] = []
            for kind, start_s, end_s, count in client.get("marks", ()):
                start_us = round(start_s * 1e6)
                if kind in MARKS:  # a report may come from elsewhere
                    marks += [MARKS.index(kind), start_us, round(end_s * 1e6) - start_us, count]
            clients[index] = [-1 if arrival_s is None else round(arrival_s * 1e6), flat, marks]
        rounds.append([one["round"], round(one["duration_s"] * 1e6), critical, clients])
    if not any(segments for *_, clients in rounds for _, segments, _ in clients):
        return None
    parts = [[PART_NAMES[part], COLOURS[part]] for part in _PARTS]
    return {
        "clients": names,
        "parts": parts,
        "marks": [_MARK_WORDS[kind] for kind in MARKS],
        "rounds": rounds,
    }
