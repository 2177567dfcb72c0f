"""Medians, shares and intervals, against closed forms and simulated runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis import statistics
from analysis.statistics import block_length, counted_rounds, differences, median_ns, p99_ns, share
from tests.unit.synthetic_run import make_ledger


def simulated_runs(
    rounds: int, correlation: float, runs: int, seed: int, *, lognormal: bool = False
) -> NDArray[np.int64]:
    """rounds x runs of durations around 2 s; neighbouring rounds of a run are correlated."""
    noise = np.random.default_rng(seed).standard_normal((rounds + 60, runs))
    for at in range(1, len(noise)):
        noise[at] += correlation * noise[at - 1]
    noise = noise[60:]
    durations = 2e9 * np.exp(0.5 * noise) if lognormal else 2e9 + 1e8 * noise
    scaled: NDArray[np.int64] = durations.astype(np.int64)
    return scaled


def coverage(rounds: int, correlation: float, runs: int = 1000, *, lognormal: bool = False) -> float:
    """How often the interval of two alike runs' difference holds the truth, which is 0."""
    run, baseline = (simulated_runs(rounds, correlation, runs, seed, lognormal=lognormal) for seed in (1, 2))
    found = differences(run, baseline)
    return float(
        np.mean(
            [one.interval_ns is not None and one.interval_ns[0] <= 0 <= one.interval_ns[1] for one in found]
        )
    )


@pytest.mark.parametrize("lognormal", [False, True], ids=["gaussian", "lognormal"])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("rounds", [7, 9, 14, 19, 50])
def test_intervals_cover_the_truth(rounds: int, correlation: float, lognormal: bool) -> None:
    """90 to 97 %; 3,000 pairs tell that to half a per cent."""
    found = coverage(rounds, correlation, runs=3000, lognormal=lognormal)
    assert 0.90 <= round(found, 2) <= 0.97


def test_plain_percentiles_would_not_cover_at_9_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_widening", lambda rounds, length: 1.0)
    assert coverage(9, 0.3) < 0.85


def test_an_interval_finds_an_injected_difference() -> None:
    baseline = simulated_runs(50, 0.3, 1, 3)
    found = differences(simulated_runs(50, 0.3, 1, 4) + 300_000_000, baseline)[0]
    assert found.interval_ns is not None
    assert 200e6 < found.interval_ns[0] < 300e6 < found.interval_ns[1] < 400e6


def test_differences_of_parts_add_up_to_the_difference_of_the_whole() -> None:
    chance = np.random.default_rng(5)
    run, baseline = chance.integers(0, 10**9, (12, 4)), chance.integers(0, 10**9, (9, 4))

    def whole(parts: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.column_stack([parts, parts.sum(axis=1)])

    found = differences(whole(run), whole(baseline))
    assert sum(one.delta_ns for one in found[:-1]) == pytest.approx(found[-1].delta_ns, abs=1e-3)


def test_a_cost_in_few_rounds_is_not_lost() -> None:
    """A median would call an evaluation every fifth round free."""
    rare = np.zeros((10, 1), dtype=np.int64)
    rare[[4, 9]] = 500_000_000
    assert differences(rare, np.zeros((10, 1), dtype=np.int64))[0].delta_ns == 100e6


def test_the_same_runs_give_the_same_interval() -> None:
    run, baseline = simulated_runs(9, 0.3, 3, 6), simulated_runs(9, 0.3, 3, 7)
    assert differences(run, baseline) == differences(run, baseline)


def test_equal_rounds_have_no_spread() -> None:
    found = differences(np.full((9, 1), 7), np.full((9, 1), 3))[0]
    assert (found.delta_ns, found.interval_ns) == (4.0, (4.0, 4.0))


@pytest.mark.parametrize(("run", "baseline", "has_interval"), [(6, 9, False), (9, 6, False), (7, 7, True)])
def test_too_few_rounds_have_no_interval(run: int, baseline: int, has_interval: bool) -> None:
    found = differences(simulated_runs(run, 0, 1, 8), simulated_runs(baseline, 0, 1, 9))[0]
    assert (found.interval_ns is not None) is has_interval


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        differences(np.zeros((0, 2), dtype=np.int64), np.zeros((3, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="cannot compare"):
        differences(np.zeros((3, 2), dtype=np.int64), np.zeros((3, 1), dtype=np.int64))


def test_blocks_grow_with_the_run_and_fit_into_it() -> None:
    assert [block_length(rounds) for rounds in (1, 4, 9, 49, 50, 1000)] == [1, 2, 4, 5, 5, 11]


def test_round_1_is_left_out_unless_it_is_alone() -> None:
    assert [one.round for one in counted_rounds(make_ledger(rounds=4))] == [2, 3, 4]
    assert [one.round for one in counted_rounds(make_ledger(rounds=1))] == [1]


def test_p99_is_withheld_below_100_rounds() -> None:
    assert p99_ns(range(99)) is None
    assert p99_ns(range(100)) == 98
    assert p99_ns(range(1000, 0, -1)) == 990


def test_nothing_has_no_median() -> None:
    assert median_ns([]) is None
    assert share([], []) is None
    assert median_ns([1, 2]) == 1.5


@given(st.lists(st.lists(st.integers(0, 10**12), min_size=3, max_size=3), min_size=1, max_size=30))
def test_shares_of_parts_add_to_one(rounds: list[list[int]]) -> None:
    durations = [sum(parts) for parts in rounds]
    shares = [share([parts[at] for parts in rounds], durations) for at in range(3)]
    assert sum(one or 0.0 for one in shares) == pytest.approx(1.0 if sum(durations) else 0.0)
