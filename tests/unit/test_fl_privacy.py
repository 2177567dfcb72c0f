"""Differential privacy: published epsilons, and noise and clipping as the accountant assumes them."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from fl.aggregation.step import ServerStep
from fl.events import EventLog
from fl.options import FlOptions, OptionError
from fl.privacy.accounting import ORDERS, Accountant, noise_for
from fl.privacy.mechanism import Mechanism, clipped
from fl.updates import UpdateMaker
from fl.wire import Kind, Message, decode
from tests.fl_simulation import client_config
from tests.unit.test_fl_updates import MODEL, TRAINED


def moments_epsilon(accountant: Accountant, rounds: int) -> float:
    """The conversion of the moments accountant (Abadi et al., 2016), which older papers print."""
    renyi = accountant.renyi(rounds)
    return min(r - math.log(accountant.delta) / (a - 1) for r, a in zip(renyi, ORDERS, strict=True))


# McMahan et al., "Learning Differentially Private Recurrent Language Models" (ICLR 2018), table 1:
# 10^5 users of whom 10^2 are drawn a round, noise 1.0, delta = users^-1.1.
@pytest.mark.parametrize(
    ("rounds", "published"), [(1, 0.97), (10, 0.98), (100, 1.00), (1000, 1.07), (10**4, 1.18), (10**5, 2.21)]
)
def test_client_level_epsilons_of_the_paper(rounds: int, published: float) -> None:
    accountant = Accountant(noise_multiplier=1.0, delta=(10**5) ** -1.1, sample_rate=1e-3)
    assert moments_epsilon(accountant, rounds) == pytest.approx(published, abs=0.005)
    assert accountant.epsilon(rounds) < published  # today's conversion is tighter


def test_the_epsilon_that_opacus_publishes() -> None:
    # opacus/tests/accountants_test.py: sigma 1.5, rate 0.04, 90 epochs.
    accountant = Accountant(noise_multiplier=1.5, delta=1e-5, sample_rate=0.04)
    assert accountant.epsilon(2250) == pytest.approx(7.32911117143, abs=1e-6)


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    renyi = Accountant(noise_multiplier=2.0, delta=1e-5).renyi(10)
    assert np.allclose(renyi, [10 * a / (2 * 2.0**2) for a in ORDERS])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0, 1000.0])
@pytest.mark.parametrize("rounds", [1, 50])
def test_the_least_noise_for_an_epsilon(epsilon: float, rounds: int) -> None:
    noise = noise_for(epsilon, delta=1e-5, rounds=rounds)
    assert Accountant(noise_multiplier=noise, delta=1e-5).epsilon(rounds) <= epsilon
    less = Accountant(noise_multiplier=noise * 0.995, delta=1e-5)
    assert less.epsilon(rounds) > epsilon


def test_clipping() -> None:
    assert clipped(np.float32([3, 4]), 5.0).tolist() == [3, 4]
    assert clipped(np.float32([3, 4]), 1.0) == pytest.approx([0.6, 0.8], rel=1e-5)
    assert clipped(np.float32([np.inf, 1]), 1.0).tolist() == [0, 0]
    for seed in range(50):  # rounding never makes it longer
        vector = np.random.default_rng(seed).normal(size=10_000).astype(np.float32)
        assert np.linalg.norm(clipped(vector, 0.5)) <= 0.5


def test_the_noise_is_gaussian_of_the_size_accounted_for() -> None:
    options = FlOptions(privacy="dp", dp_noise_multiplier=2.0, dp_clip=0.25)
    mechanism = Mechanism(options, 10, np.random.default_rng(16))
    zeros = [np.zeros(200_000, dtype=np.float32)] * 4
    mean, longer = mechanism.mean(zeros)
    assert longer == 0
    # Of the sum 2.0 * 0.25, of the mean of four a quarter of that.
    assert stats.kstest(mean / 0.125, "norm").pvalue > 1e-3


def test_one_client_moves_the_sum_by_no_more_than_the_clip() -> None:
    options = FlOptions(privacy="dp", dp_noise_multiplier=1.0, dp_clip=0.5)
    vectors = [np.random.default_rng(i).normal(size=500).astype(np.float32) for i in range(5)]
    results = [
        Mechanism(options, 1, np.random.default_rng(0)).mean(vectors[:count])[0] * count for count in (4, 5)
    ]
    assert np.linalg.norm(results[1] - results[0]) <= 0.5 * 1.0001


def test_two_runs_have_different_noise() -> None:
    options = FlOptions(privacy="dp")
    zeros = [np.zeros(100, dtype=np.float32)]
    first, second = (Mechanism(options, 1).mean(zeros)[0] for _ in range(2))
    assert not np.allclose(first, second)


def test_a_round_says_what_was_spent() -> None:
    stream = io.StringIO()
    options = FlOptions(privacy="dp", dp_epsilon=4.0, dp_clip=0.5)
    step = ServerStep(options, 2, EventLog(stream), rounds=3)
    model = np.zeros(2, dtype=np.float32)
    for number in (1, 2, 3):
        messages = [
            Message(
                kind=Kind.UPDATE, round=number, client_id=c, num_examples=n, body=model + np.float32([0, d])
            )
            for c, n, d in (("a", 1, 0.25), ("b", 1000, 10.0))
        ]
        model = step.next_model(model, messages, number)
    spent = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [e["clipped_by_server"] for e in spent] == [1, 1, 1]
    assert spent[0]["epsilon"] < spent[1]["epsilon"] < spent[2]["epsilon"] <= 4.0
    assert spent[2]["epsilon"] > 3.98


def test_clients_clip_and_attackers_do_not_care() -> None:
    def length(index: int) -> float:
        options = FlOptions(privacy="dp", dp_clip=0.125, attack="scale")
        maker = UpdateMaker(client_config(index, 5, options), 4)
        return float(np.linalg.norm(decode(maker.encode(TRAINED, MODEL, 1)).body - MODEL))

    assert length(0) == pytest.approx(0.125, rel=1e-4)
    assert length(4) == pytest.approx(1.25, rel=1e-4)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"privacy": "dp", "dp_epsilon": 0}, "dp_epsilon: 0, expected a number from 0.001"),
        ({"dp_epsilon": 8.0}, "8 changes nothing without privacy dp"),
        ({"privacy": "dp", "dp_epsilon": 8.0, "dp_noise_multiplier": 1.0}, "give one of the two"),
        ({"privacy": "dp", "aggregation": "median"}, "not for median"),
        ({"privacy": "dp", "dp_delta": 1.0}, "expected a number from 1e-12 to 0.1"),
    ],
)
def test_what_cannot_be(values: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        FlOptions(**values)  # type: ignore[arg-type]
    assert says in str(caught.value)
