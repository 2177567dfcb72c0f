"""FedAvg and the server optimisers."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from fl.aggregation.mean import fedavg
from fl.aggregation.step import ServerStep
from fl.events import EventLog
from fl.options import FlOptions
from fl.wire import Kind, Message


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


REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "fl" / "flower_fedopt.json").read_text())


@pytest.mark.parametrize("kind", ["fedadagrad", "fedadam", "fedyogi"])
def test_server_optimisers_are_flowers(kind: str) -> None:
    model = np.float32(REFERENCE["initial"])
    options = FlOptions(algorithm=kind, server_lr=REFERENCE["server_lr"], server_tau=REFERENCE["server_tau"])
    step = ServerStep(options, len(model), EventLog(io.StringIO()), rounds=4)
    for number, (updates, expected) in enumerate(
        zip(REFERENCE["updates"], REFERENCE["models"][kind], strict=True), 1
    ):
        messages = [
            Message(kind=Kind.UPDATE, round=number, num_examples=n, body=np.float32(vector))
            for vector, n in zip(updates, REFERENCE["examples"], strict=True)
        ]
        model = step.next_model(model, messages, number)
        assert model.dtype == np.float32
        assert np.allclose(model, expected, rtol=1e-5, atol=1e-6)


def test_reference_optimisers_differ_from_each_other_and_from_fedavg() -> None:
    ends = [tuple(models[-1]) for models in REFERENCE["models"].values()]
    assert len(set(ends)) == 3
