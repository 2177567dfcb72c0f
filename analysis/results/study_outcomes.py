"""What came of a study's runs by network, level and data distribution, and how accuracy grew.

The published figures show both distributions beside each other where a group takes them together: success,
p99, time to accuracy, failures; and accuracy over rounds with a band, here the range of a group's runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.results.study_files import NOT_OF_DEPLOYMENT

__all__ = ("completion_frame", "convergence_of", "outcomes_frame", "outcomes_of")


def outcomes_of(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a group and data distribution.

    :param cells: as `analysis.results.study` has them, with the samples of their quiet runs.
    """
    members: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        members[cell["group"], cell["distribution"]].append(cell)
    rows = []
    for (group, distribution), mine in members.items():
        rounds_ns = [
            ns for cell in mine for sample in cell["samples"] for ns in sample.parts_ns[:, 0].tolist()
        ]
        complete = sum(cell["complete"] for cell in mine)
        failed = sum(len(cell["failures"]) for cell in mine)
        spoiled = sum(one["class"] in NOT_OF_DEPLOYMENT for cell in mine for one in cell["failures"])
        reached_s = [s for cell in mine for s in cell["time_to_target_s"] if s is not None]
        rows.append(
            {
                "group": group,
                "profile": mine[0]["profile"],
                "level": mine[0]["level"],
                "variant": mine[0]["variant"],
                "distribution": distribution,
                "planned": sum(cell["planned"] for cell in mine),
                "complete": complete,
                # An attempt that others or the cluster spoiled says nothing of the deployment.
                "attempts": complete + failed - spoiled,
                "failed_attempts": failed - spoiled,
                "rounds": len(rounds_ns),
                "median_s": _seconds(statistics.median_ns(rounds_ns)),
                "p99_s": _seconds(statistics.p99_ns(rounds_ns)),
                "reached_target": len(reached_s),
                "time_to_target_s": round(float(np.median(reached_s)), 9) if reached_s else None,
            }
        )
    return rows


def convergence_of(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy by round: of each group and data distribution the median of its runs, and their range."""
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    about: dict[tuple[str, str], Mapping[str, Any]] = {}
    for cell in cells:
        key = cell["group"], cell["distribution"]
        about.setdefault(key, cell)
        for curve in cell["curves"]:
            for number, accuracy in curve.items():
                found[key][number].append(accuracy)
    return [
        {
            "group": key[0],
            "profile": about[key]["profile"],
            "level": about[key]["level"],
            "variant": about[key]["variant"],
            "distribution": key[1],
            "rounds": sorted(by_round),
            "runs": [len(by_round[number]) for number in sorted(by_round)],
            **{
                name: [round(float(of(by_round[number])), 9) for number in sorted(by_round)]
                for name, of in (("median", np.median), ("low", np.min), ("high", np.max))
            },
        }
        for key, by_round in found.items()
    ]


def outcomes_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """The published Table I and what goes with it: one row a group and data distribution."""
    frame = pd.DataFrame(report["outcomes"]).drop(columns="variant")
    return frame.astype({name: "float64" for name in frame if str(name).endswith("_s")})


def completion_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """The published Table II: runs by each factor's values."""
    columns = ["factor", "value", "complete", "planned", "failed_attempts"]
    return pd.DataFrame(report["completion"], columns=columns)


def _seconds(value_ns: float | None) -> float | None:
    return None if value_ns is None else round(value_ns / 1e9, 9)
