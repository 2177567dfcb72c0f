"""FedAvg."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fl.aggregation import fedavg


def test_weights_are_the_numbers_of_examples() -> None:
    a, b = np.float32([1, 10]), np.float32([5, -10])
    mean = fedavg([(a, 3), (b, 1)])
    assert mean.tolist() == [2.0, 5.0]
    assert mean.dtype == np.float32


def test_agrees_with_numpy_and_leaves_its_input_alone() -> None:
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=1000).astype(np.float32) for _ in range(5)]
    before = [vector.copy() for vector in vectors]
    for vector in vectors:
        vector.flags.writeable = False
    weights = [191, 261, 463, 286, 236]
    expected = np.average(np.stack(vectors).astype(np.float64), axis=0, weights=weights)
    mean = fedavg(list(zip(vectors, weights, strict=True)))
    assert np.allclose(mean, expected, rtol=1e-7)
    assert all(np.array_equal(now, then) for now, then in zip(vectors, before, strict=True))


def test_one_client_is_itself_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    results = [(rng.normal(size=500).astype(np.float32), n) for n in (100, 7, 33)]
    assert np.array_equal(fedavg(results[:1]), results[0][0])
    for order in itertools.permutations(results):
        assert np.allclose(fedavg(order), fedavg(results), rtol=2e-7)


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([], "no results"),
        ([(np.zeros(2, np.float32), 1), (np.zeros(3, np.float32), 1)], "different shapes"),
        ([(np.zeros(2, np.float32), 0)], "at least 1"),
    ],
)
def test_what_has_no_mean_is_refused(results: list[tuple[np.ndarray, int]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fedavg(results)
