"""Intervals for a handful of paired blocks."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ("Ratio", "paired_ratio")

_RESAMPLES = 4000
_MIN_PAIRS = 3


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of paired ratios, with its 95 % bootstrap interval if there are enough pairs."""

    ratio: float
    low: float | None
    high: float | None
    pairs: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.ratio:.3f}, too few pairs ({self.pairs}) for an interval"
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.pairs} pairs)"


def paired_ratio(pairs: Sequence[tuple[float, float]], *, seed: int = 0) -> Ratio | None:
    """(numerator, denominator) of every block pair -> their ratio; None without pairs."""
    logs = [math.log(top / bottom) for top, bottom in pairs]
    if not logs:
        return None
    ratio = math.exp(statistics.fmean(logs))
    if len(logs) < _MIN_PAIRS:
        return Ratio(ratio, None, None, len(logs))
    draw = random.Random(seed)
    means = sorted(statistics.fmean(draw.choices(logs, k=len(logs))) for _ in range(_RESAMPLES))
    low, high = means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]
    return Ratio(ratio, math.exp(low), math.exp(high), len(logs))
