"""What paired blocks say of a ratio, in two ways.

`paired_ratio` is the ratio of a typical pair: the Hodges-Lehmann estimate (the median of the means of
all two log ratios) with the interval of Wilcoxon's signed ranks, which needs no normal distribution
and is not moved far by a few pairs in which something happened to one block. What happens seldom
and costs much is what it does not see, so `mean_ratio` stands beside it where that may be: the
geometric mean with a bootstrap interval, wide where few pairs weigh much.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ("Ratio", "mean_ratio", "paired_ratio")

_RESAMPLES = 4000
_MIN_PAIRS = 6  # fewer signed ranks have no 95 % interval
_Z = 1.96


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % interval if there are enough pairs."""

    ratio: float
    low: float | None
    high: float | None
    pairs: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.ratio:.3f}, too few pairs ({self.pairs}) for an interval"
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.pairs} pairs)"


def _logs(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return [math.log(top / bottom) for top, bottom in pairs]


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Ratio | None:
    """(numerator, denominator) of every pair of blocks -> that of a typical pair; None without pairs."""
    logs = _logs(pairs)
    count = len(logs)
    if not logs:
        return None
    means = sorted((logs[i] + logs[j]) / 2 for i in range(count) for j in range(i, count))
    ratio = math.exp(statistics.median(means))
    if count < _MIN_PAIRS:
        return Ratio(ratio, None, None, count)
    # The normal approximation of the signed-rank statistic, rounded outwards.
    spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    cut = max(0, math.floor(len(means) / 2 - _Z * spread))
    return Ratio(ratio, math.exp(means[cut]), math.exp(means[-1 - cut]), count)


def mean_ratio(pairs: Sequence[tuple[float, float]], *, seed: int = 0) -> Ratio | None:
    """The same -> the geometric mean of all pairs; None without pairs."""
    logs = _logs(pairs)
    if not logs:
        return None
    ratio = math.exp(statistics.fmean(logs))
    if len(logs) < _MIN_PAIRS:
        return Ratio(ratio, None, None, len(logs))
    draw = random.Random(seed)
    means = sorted(statistics.fmean(draw.choices(logs, k=len(logs))) for _ in range(_RESAMPLES))
    low, high = means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]
    return Ratio(ratio, math.exp(low), math.exp(high), len(logs))
