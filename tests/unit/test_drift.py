"""Trends are found where there are some, and seldom where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from analysis.drift import _inversions, change_ns, drifts


@pytest.mark.parametrize("rounds", [9, 19, 49])
def test_rounds_without_a_trend_have_none(rounds: int) -> None:
    random = np.random.default_rng(5)
    found = 0
    for _ in range(400):
        noise = random.normal(size=rounds + 20)
        for index in range(1, len(noise)):
            noise[index] = 0.3 * noise[index - 1] + noise[index]
        found += drifts([round(1e9 + 1e8 * value) for value in noise[20:]])
    assert found <= 4  # 1 %


@pytest.mark.parametrize("rounds", [9, 19, 49])
def test_rounds_that_grow_by_four_of_their_own_spread_do(rounds: int) -> None:
    random = np.random.default_rng(6)
    trend = np.linspace(0, 8, rounds)
    values = [round(1e9 + 1e8 * value) for value in trend + random.normal(scale=0.5, size=rounds)]
    assert drifts(values)
    assert change_ns(values) == pytest.approx(8e8, rel=0.25)
    assert change_ns(values[::-1]) == -change_ns(values)


def test_the_order_s_distribution_is_kendall_s() -> None:
    """By an independent implementation of the exact test."""
    values = [3, 1, 4, 2, 6, 5, 8, 7, 9]
    p = scipy.stats.kendalltau(range(9), values, method="exact").pvalue
    in_order = sum(b > a for i, a in enumerate(values) for b in values[i + 1 :])
    assert 2 * _inversions(9)[in_order:].sum() == pytest.approx(p)


@pytest.mark.parametrize("values", [[], [1], [5, 5, 5, 5, 5, 5, 5, 5, 5]])
def test_nothing_to_compare_is_no_drift(values: list[int]) -> None:
    assert not drifts(values)
    assert change_ns(values) == 0
