"""Intervals of quantiles over the rounds of several runs, whose own rounds are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ("MIN_ROUNDS_FOR_P99_INTERVAL", "quantile_interval_ns")

MIN_ROUNDS_FOR_P99_INTERVAL = 367  # 0.99**n is 2.5 %: the largest value can be the upper edge
_RESAMPLES = 1000
_SEED = 1


def quantile_interval_ns(rounds_ns: Sequence[NDArray[np.int64]], percent: int) -> tuple[float, float] | None:
    """95 % interval of a percentile over all rounds, by drawing whole runs; None: a single run.

    :param rounds_ns: of each run the durations of its counted rounds.
    """
    if len(rounds_ns) < 2:
        return None
    random = np.random.Generator(np.random.PCG64(_SEED))
    drawn = random.integers(0, len(rounds_ns), size=(_RESAMPLES, len(rounds_ns)))
    found = [
        np.percentile(np.concatenate([rounds_ns[i] for i in one]), percent, method="inverted_cdf")
        for one in drawn
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
