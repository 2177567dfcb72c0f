"""What a monitoring system is told of a run: few numbers, however many rounds there were.

A report has every round; here are its means and longest ones, by component and by client. They are known once
the run has been analysed, not before.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from analysis.report.communication import COMMUNICATION_COMPONENTS

__all__ = ("round_figures",)


def round_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """As `ztprobe.agent.service.round_metrics.counts_of` takes it; rounds without a breakdown are left out.

    :param report: report.json
    """
    rounds = [one for one in report["rounds"] if not one["withheld"]]
    spent: dict[str, list[float]] = {}
    communication: dict[str, list[float]] = {}
    for one in rounds:
        for part, seconds in {**one["components"], "residual": one["residual_s"]}.items():
            spent.setdefault(part, []).append(seconds)
        for client in one["clients"]:
            times = [client["components"][part] for part in COMMUNICATION_COMPONENTS]
            if None not in times:
                communication.setdefault(client["client"], []).append(sum(times))
    last = report["rounds"][-1]
    return {
        "ended_unix_s": report["started_unix_s"] + last["start_s"] + last["duration_s"],
        "rounds": len(rounds),
        "component_mean_s": {part: statistics.fmean(times) for part, times in spent.items()},
        "communication_mean_s": {who: statistics.fmean(times) for who, times in communication.items()},
        "communication_longest_s": {who: max(times) for who, times in communication.items()},
    }
