"""How groups of runs differ from a reference, part by part.

Between one run and one run, all that can be said is how their rounds differ: the interval is the
report's own, a block bootstrap over rounds (`analysis.statistics`), and does not cover what another
pair would give. With two runs or more on each side the unit is the run: Welch's interval (unequal
variances, scipy) of the runs' mean times, which covers what differs between runs. One run against
several gets no interval, because nothing is known of how the one would vary. Runs that were made in
pairs, one of each side close in time, are compared pair by pair (Student's interval of the differences).
Of several runs those during which the machine was not quiet are left out. Where there are no others there
is no interval, as in a report: what others did is in the difference, and nothing says how much.

The relative change is the same on a logarithmic scale (Welch), or from the same resamples (one pair).
Hedges' g is the difference in units of the pooled standard deviation, of runs or of rounds, corrected
for small samples; differences of means add up over the parts, effect sizes do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import statistics
from analysis.report.wording import plural
from analysis.results.samples import PARTS, RunGroup

__all__ = ("COMPARISON_SCHEMA_VERSION", "compare", "worse_by")

COMPARISON_SCHEMA_VERSION = 1  # of comparison.json, as comparison.schema.json has it

_PAIR = (
    "block bootstrap over rounds, conditional on this pair of runs: how another pair would differ is not"
    " in it"
)
_PAIRS = "Student's interval of the pairs' differences: it covers what differs between pairs"
_WELCH = "Welch's interval of the runs' means: it covers what differs between runs"


def compare(groups: Sequence[RunGroup], *, paired: bool = False) -> dict[str, Any]:
    """Every group but the first beside the first, as plain data with seconds.

    :param paired: the n-th runs of all groups belong together.
    :raises ValueError: fewer than two groups, or pairs that are not complete.
    """
    if len(groups) < 2:
        raise ValueError(f"cannot compare {len(groups)} group of runs")
    if paired and len({len(group.samples) for group in groups}) > 1:
        raise ValueError("pairs are not complete")
    reference, *others = groups
    return {
        "schema_version": COMPARISON_SCHEMA_VERSION,
        "reference": _described(reference),
        "groups": [_described(group) | _difference(group, reference, paired=paired) for group in others],
    }


def worse_by(group: dict[str, Any]) -> float | None:
    """By which share rounds got longer at the least (the relative interval's lower edge); None: unknown."""
    interval = group["parts"]["duration"]["relative_ci95"]
    return None if interval is None else float(interval[0])


def _described(group: RunGroup) -> dict[str, Any]:
    means_ns = group.run_means_ns.mean(axis=0)
    return {
        "path": str(group.path),
        "experiment": group.experiment,
        "runs": len(group.samples),
        "rounds": group.rounds,
        "contended_runs": group.contended,
        "left_out_runs": group.left_out,
        "cpus": sorted({sample.cpus for sample in group.samples if sample.cpus is not None}),
        "offloads": sorted({sample.offloads for sample in group.samples if sample.offloads is not None}),
        "mean_s": {part: _seconds(mean) for part, mean in zip(PARTS, means_ns, strict=True)},
    }


def _difference(group: RunGroup, reference: RunGroup, *, paired: bool) -> dict[str, Any]:
    one, other = group.run_means_ns, reference.run_means_ns
    deltas_ns = one.mean(axis=0) - other.mean(axis=0)
    least = min(len(one), len(other))
    intervals_ns: list[tuple[float, float] | None]
    relative: tuple[float, float] | None
    spread: list[NDArray[np.float64]]
    if group.contended or reference.contended:
        unit, method = "runs", _not_quiet(group, reference)
        intervals_ns, relative, spread = [None] * len(PARTS), None, []
    elif len(one) == len(other) == 1:
        unit, method = "rounds", _PAIR
        intervals_ns = _bootstrapped(group, reference)
        relative = _relative_rounds(group, reference)
        spread = [side.samples[0].parts_ns.astype(np.float64) for side in (group, reference)]
    elif least > 1 and paired:
        unit, method = "runs", _PAIRS
        intervals_ns = _student(one, other)
        relative = _relative_pairs(one[:, 0], other[:, 0])
        spread = [one, other]
    elif least > 1:
        unit, method = "runs", _WELCH
        intervals_ns = _welch(one, other)
        relative = _relative_runs(one[:, 0], other[:, 0])
        spread = [one, other]
    else:
        unit, method = "runs", f"no interval: {plural(least, 'run')} on one side, and it takes 2 on each"
        intervals_ns, relative, spread = [None] * len(PARTS), None, []
    parts = {}
    for index, part in enumerate(PARTS):
        reference_ns = other.mean(axis=0)[index]
        parts[part] = {
            "delta_s": _seconds(deltas_ns[index]),
            "ci95": _edges(intervals_ns[index]),
            "relative": round(deltas_ns[index] / reference_ns, 9) if reference_ns else None,
            "effect_size": _hedges_g(*(side[:, index] for side in spread)) if spread else None,
        }
    parts["duration"]["relative_ci95"] = None if relative is None else [round(edge, 9) for edge in relative]
    return {"parts": parts, "unit": unit, "method": method}


def _not_quiet(*groups: RunGroup) -> str:
    said = [
        f"{one.contended} of {plural(len(one.samples), 'run')} of {one.experiment}"
        for one in groups
        if one.contended
    ]
    return f"no interval: the machine was not quiet during {' and '.join(said)}, which may be the difference"


def _bootstrapped(group: RunGroup, reference: RunGroup) -> list[tuple[float, float] | None]:
    rounds = (group.samples[0].parts_ns, reference.samples[0].parts_ns)
    return [difference.interval_ns for difference in statistics.differences(*rounds)]


def _relative_rounds(group: RunGroup, reference: RunGroup) -> tuple[float, float] | None:
    rounds = (group.samples[0].parts_ns[:, :1], reference.samples[0].parts_ns[:, :1])
    return statistics.relative_interval(*rounds)


def _welch(one: NDArray[np.float64], other: NDArray[np.float64]) -> list[tuple[float, float] | None]:
    from scipy import stats  # 0.5 s to import

    found: list[tuple[float, float] | None] = []
    for left, right in zip(one.T, other.T, strict=True):
        if np.ptp(left) == np.ptp(right) == 0:  # no part of either: nothing varies, Welch has no degrees
            found.append((float(left[0] - right[0]),) * 2)
            continue
        edges = stats.ttest_ind(left, right, equal_var=False).confidence_interval(statistics.LEVEL)
        found.append((float(edges.low), float(edges.high)))
    return found


def _student(one: NDArray[np.float64], other: NDArray[np.float64]) -> list[tuple[float, float] | None]:
    from scipy import stats

    found: list[tuple[float, float] | None] = []
    for left, right in zip(one.T, other.T, strict=True):
        if np.ptp(left - right) == 0:
            found.append((float(left[0] - right[0]),) * 2)
            continue
        edges = stats.ttest_rel(left, right).confidence_interval(statistics.LEVEL)
        found.append((float(edges.low), float(edges.high)))
    return found


def _relative_pairs(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Of the durations, which are never 0."""
    (edges,) = _student(np.log(one)[:, None], np.log(other)[:, None])
    if edges is None:
        raise ValueError("durations without an interval")
    return math.expm1(edges[0]), math.expm1(edges[1])


def _relative_runs(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Of the durations, which are never 0."""
    (edges,) = _welch(np.log(one)[:, None], np.log(other)[:, None])
    if edges is None:
        raise ValueError("durations without an interval")
    return math.expm1(edges[0]), math.expm1(edges[1])


def _hedges_g(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Hedges (1981), with the approximate correction 1 - 3 / (4 df - 1)."""
    degrees = len(one) + len(other) - 2
    if degrees < 1 or min(len(one), len(other)) < 2:
        return None
    pooled = ((len(one) - 1) * one.var(ddof=1) + (len(other) - 1) * other.var(ddof=1)) / degrees
    if pooled == 0:
        return None
    return round(float((one.mean() - other.mean()) / math.sqrt(pooled) * (1 - 3 / (4 * degrees - 1))), 6)


def _seconds(value_ns: float) -> float:
    return round(float(value_ns) / 1e9, 9)


def _edges(interval_ns: tuple[float, float] | None) -> list[float] | None:
    return None if interval_ns is None else [_seconds(edge) for edge in interval_ns]
