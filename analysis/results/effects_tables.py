"""A study's effects and slack as tables: one row each for programs, and words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.report.wording import NOTHING, PART_NAMES, human_time
from analysis.results.effects_figures import interacting

__all__ = ("effect_rows", "effects_frame", "interaction_tables", "slack_frame")

_COLUMNS = (
    "part",
    "scale",
    "kind",
    "effect",
    "estimate",
    "low",
    "high",
    "degrees",
    "p",
    "partial_eta_squared",
)


def effects_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each part, scale and effect: linear in seconds, log as a factor."""
    rows = []
    for part, of in report["effects"]["parts"].items():
        for scale, estimate in (("linear", "delta_s"), ("log", "ratio")):
            for one in of[scale] or ():
                low, high = one["ci95"] or (None, None)
                values = (one[estimate], low, high, one["degrees"], one["p"], one["partial_eta_squared"])
                rows.append((part, scale, one["kind"], one["name"], *values))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def slack_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row a group and client; seconds, and the share of rounds that the client decided."""
    rows = [
        (
            group["name"],
            one["client"],
            one["runs"],
            one["slack_s"],
            *(one["ci95"] or (None, None)),
            one["decided"],
        )
        for group in report["groups"]
        for one in group["slack"]
    ]
    columns = ["group", "client", "runs", "slack_s", "slack_low_s", "slack_high_s", "decided"]
    return pd.DataFrame(rows, columns=columns)


def effect_rows(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each factor does to the whole round, alone and together, on both scales, in words."""
    of = report["effects"]["parts"].get("duration")
    rows = []
    for index, one in enumerate(of["linear"] if of else ()):
        if one["kind"] == "under":
            continue
        log = of["log"][index] if of["log"] else None
        size = one["partial_eta_squared"]
        rows.append(
            {
                "effect": one["name"],
                "delta": human_time(one["delta_s"], signed=True),
                "interval": _seconds(one["ci95"]),
                "ratio": NOTHING if log is None else f"× {log['ratio']:.3g}",
                "ratio_interval": NOTHING if log is None else _ratios(log["ci95"]),
                "size": NOTHING if size is None else f"{size:.2f}",
            }
        )
    return rows


def interaction_tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For pairs such as mTLS and profile: what it costs without the other, and the more with it, by part."""
    parts = report["effects"]["parts"]
    tables = []
    for changed, under in interacting(report):
        linear = parts["duration"]["linear"]
        together = [
            index
            for index, one in enumerate(linear)
            if one["kind"] == "interaction" and [c[0] for c in one["changes"]] == [changed, under]
        ]
        for index in together:
            (_, _, value), (_, first, _) = linear[index]["changes"]
            alone = next(
                number
                for number, one in enumerate(linear)
                if one["kind"] == "under"
                and one["changes"][0][0] == changed
                and one["changes"][0][2] == value
                and one["given"] == [[under, first]]
            )
            rows = []
            for part in (*(name for name in parts if name != "duration"), "duration"):
                here = parts[part]["linear"]
                if here[alone]["delta_s"] or here[index]["delta_s"]:
                    rows.append(_part_row(part, here[alone], here[index]))
            names: dict[str, Any] = {"changed": changed, "under": under}
            names |= {"alone": linear[alone]["name"], "together": linear[index]["name"]}
            tables.append(names | {"rows": rows})
    return tables


def _part_row(part: str, alone: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, str]:
    return {
        "part": "round" if part == "duration" else PART_NAMES[part],
        "alone": human_time(alone["delta_s"], signed=True),
        "alone_interval": _seconds(alone["ci95"]),
        "more": human_time(more["delta_s"], signed=True),
        "more_interval": _seconds(more["ci95"]),
    }


def _seconds(edges: list[float] | None) -> str:
    return NOTHING if edges is None else " … ".join(human_time(edge, signed=True) for edge in edges)


def _ratios(edges: list[float] | None) -> str:
    return NOTHING if edges is None else " … ".join(f"{edge:.3g}" for edge in edges)
