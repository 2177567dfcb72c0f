"""Slack by client: how much later each could have been without lengthening rounds, and who decided them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.statistics import LEVEL

__all__ = ("ClientSlack", "slack_of_group", "slack_of_run")

ClientSlack = dict[str, tuple[float, float]]  # client -> mean slack in seconds, share of rounds it decided


def slack_of_run(report: Mapping[str, Any]) -> ClientSlack:
    """Over the counted rounds of one run's report."""
    slack_s: dict[str, list[float]] = defaultdict(list)
    decided: dict[str, list[bool]] = defaultdict(list)
    for one in report["rounds"]:
        for client in one["clients"] if one["counted"] else ():
            slack_s[client["client"]].append(client["slack_s"])
            decided[client["client"]].append(client["critical"])
    return {
        client: (float(np.mean(values)), float(np.mean(decided[client])))
        for client, values in slack_s.items()
    }


def slack_of_group(runs: Sequence[ClientSlack]) -> list[dict[str, Any]]:
    """Each client's mean over the runs that have it, with Student's interval of the runs' means."""
    rows = []
    for client in sorted({client for run in runs for client in run}):
        of_runs = np.array([run[client] for run in runs if client in run])
        rows.append(
            {
                "client": client,
                "runs": len(of_runs),
                "slack_s": round(float(of_runs[:, 0].mean()), 9),
                "ci95": _interval(of_runs[:, 0]),
                "decided": round(float(of_runs[:, 1].mean()), 9),
            }
        )
    return rows


def _interval(values_s: np.ndarray[Any, np.dtype[np.float64]]) -> list[float] | None:
    from scipy import stats  # 0.5 s to import

    if len(values_s) < 2:
        return None
    mean_s, error_s = float(values_s.mean()), float(stats.sem(values_s))
    reach_s = float(stats.t.ppf((1 + LEVEL) / 2, len(values_s) - 1)) * error_s
    return [round(mean_s - reach_s, 9), round(mean_s + reach_s, 9)]
