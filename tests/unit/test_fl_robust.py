"""Robust aggregates on cases worked by hand, and the look at single updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.aggregation.robust import gram, krum, median, trimmed_mean


def rows(*values: list[float]) -> list[np.ndarray]:
    return [np.float32(value) for value in values]


def test_median() -> None:
    odd = rows([1, 10], [2, -5], [100, 0])
    assert median(odd).tolist() == [2, 0]
    assert median([*odd, *rows([3, 4])]).tolist() == [2.5, 2]
    assert median(rows([7, 8])).tolist() == [7, 8]


def test_trimmed_mean() -> None:
    five = rows([1], [2], [3], [4], [1000])
    assert trimmed_mean(five, 1).tolist() == [3]  # of 2, 3, 4
    assert trimmed_mean(five, 0).tolist() == [202]
    assert trimmed_mean(five, 2).tolist() == [3]
    with pytest.raises(ValueError, match="trimming 3 at each end of 5"):
        trimmed_mean(five, 3)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_median_and_trimmed_mean_agree_with_numpy_and_scipy(count: int, seed: int) -> None:
    from scipy.stats import trim_mean

    values = np.random.default_rng(seed).normal(size=(count, 50)).astype(np.float32)
    assert np.allclose(median(list(values)), np.median(values, axis=0), rtol=1e-6)
    trimmed = (count - 1) // 2 // 2
    share = (trimmed + 0.5) / count
    assert np.allclose(trimmed_mean(list(values), trimmed), trim_mean(values, share), atol=1e-6)


def test_slices_of_a_long_vector_are_all_there() -> None:
    values = np.random.default_rng(0).normal(size=(3, 150_000)).astype(np.float32)
    assert np.array_equal(median(list(values)), np.median(values, axis=0))
    assert np.allclose(gram(list(values)), values.astype(np.float64) @ values.T.astype(np.float64))


def test_krum() -> None:
    # On a line at 0, 1, 3, 7 and 100 with f = 1, two nearest others count: 1 + 9 = 10, 1 + 4 = 5,
    # 4 + 9 = 13, 16 + 36 = 52, and 100 far away.
    line = rows([0], [1], [3], [7], [100])
    assert krum(line, 1) == 1
    assert krum(line[::-1], 1) == 3
    # Two accomplices in one place do not win with f = 2, where three nearest count: 1, 2 and 3 have
    # 1 + 1 + 4 = 6 each, of which the first is taken; the two have 0 + 46 ** 2 + 47 ** 2.
    assert krum(rows([50], [50], [0], [1], [2], [3], [4]), 2) == 3
    with pytest.raises(ValueError, match="needs 5 updates, there are 4"):
        krum(line[:4], 1)


def test_krum_never_takes_what_is_not_finite() -> None:
    assert krum(rows([np.nan], [1], [3], [7], [2]), 1) == 4
    assert krum(rows([np.inf], [1], [3], [7], [2]), 1) == 4
