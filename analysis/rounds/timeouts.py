"""A framework's timeouts against what was measured: how many times longer it may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.rounds.messages import LEAST_BYTES, messages_of
from analysis.rounds.traffic_pattern import exchanges_of
from analysis.rounds.transfers import Seen
from ztprobe.frameworks.timeouts import BOUNDS, timeouts_of

__all__ = ("LEAST_MARGIN", "longest_of", "timeout_row", "timeout_rows", "warnings_of")

# Below, a network twice as slow as the measured one breaks the deployment.
LEAST_MARGIN = 2.0

Row = dict[str, Any]


def longest_of(seen: Seen) -> dict[str, int]:
    """The longest of each thing that a timeout may bound, in nanoseconds; what was not seen is not there."""
    transfers = [one for one in (*seen.at_clients, *seen.at_server) if one.bytes >= LEAST_BYTES]
    messages = messages_of(seen.at_clients)
    found = {
        "part": [one.last_ns - one.first_ns for one in transfers],
        "message": [one.last_ns - one.first_ns for one in messages],
        "exchange": [one.update.last_ns - one.model.first_ns for one in exchanges_of(messages)],
    }
    return {bounds: max(durations) for bounds, durations in found.items() if durations}


def timeout_rows(
    framework: str, version: str | None, longest_ns: Mapping[str, int], others: Iterable[Row] = ()
) -> list[Row]:
    """The framework's limits, the tightest first; those that bound nothing that was seen have no margin.

    :param others: limits that were found elsewhere, as rows.
    """
    rows = [
        timeout_row(
            name=one.name,
            bounds=BOUNDS[one.bounds],
            limit_ns=one.limit_ns,
            longest_ns=longest_ns.get(one.bounds),
            source=one.source,
            setting=one.setting,
        )
        for one in timeouts_of(framework, version)
    ]
    return sorted(
        (*rows, *others), key=lambda row: (row["margin"] is None, row["margin"] or 0.0, row["name"])
    )


def timeout_row(
    *, name: str, bounds: str, limit_ns: int, longest_ns: int | None, source: str, setting: str
) -> Row:
    """A limit as report.json has it.

    :param longest_ns: the longest that was measured of what it bounds; None: none was seen.
    """
    return {
        "name": name,
        "bounds": bounds,
        "limit_s": limit_ns / 1e9,
        "longest_s": None if longest_ns is None else longest_ns / 1e9,
        "margin": limit_ns / longest_ns if longest_ns else None,
        "source": source,
        "setting": setting,
    }


def warnings_of(rows: Iterable[Row]) -> list[str]:
    """One sentence for each limit that is too near."""
    return [_warning(row) for row in rows if row["margin"] is not None and row["margin"] < LEAST_MARGIN]


def _warning(row: Row) -> str:
    remedy = (
        f"set it higher ({row['setting']})" if row["setting"] else "it cannot be set; send less or faster"
    )
    over = "was exceeded" if row["margin"] < 1 else f"is {row['margin']:.1f} times what was measured"
    return (
        f"The timeout for {row['name']} ({row['limit_s']:g} s) {over}: {row['bounds']} took up to "
        f"{row['longest_s']:.1f} s; {remedy}."
    )
