"""The published CNN and its training: parameter count, arithmetic and repeatability, against torch itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fl import training, wire
from fl.data import Dataset
from fl.errors import WireError
from fl.model import Model

PARAMETER_COUNT = 1_199_882


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def noise() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (70, 28, 28), dtype=np.uint8)
    return Dataset(images=images, labels=rng.integers(0, 10, 70), mean=0.5, deviation=0.29)


def reference(model: Model) -> torch.nn.Sequential:
    """The same network out of torch's own layers, with the same weights."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(9216, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )
    torch.nn.utils.vector_to_parameters(model.flat.clone(), net.parameters())
    return net


def test_parameter_count_is_the_published_one() -> None:
    assert len(Model().vector) == PARAMETER_COUNT
    assert sum(p.numel() for p in reference(Model()).parameters()) == PARAMETER_COUNT
    assert Model().vector.dtype == np.float32


def test_a_narrow_model_fits_into_ten_segments_and_trains() -> None:
    model = Model(seed=0, name="narrow")
    message = wire.encode(wire.Kind.MODEL, 1, body=model.vector)
    assert 12_288 < len(message) < 10 * 1448 - 100
    assert model.forward(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(WireError, match="expected"):
        model.load(Model().vector)


def test_forward_equals_torch_layers() -> None:
    model = Model(seed=1)
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.forward(images), reference(model)(images), rtol=1e-6, atol=1e-6)


def test_initial_weights_have_torch_s_spread_and_depend_on_the_seed() -> None:
    first, again, other = Model(seed=0), Model(seed=0), Model(seed=1)
    assert np.array_equal(first.vector, again.vector)
    assert not np.array_equal(first.vector, other.vector)
    for ours, theirs in zip(first.parameters, reference(Model()).parameters(), strict=True):
        assert ours.shape == theirs.shape
    dense = first.parameters[4]
    assert float(dense.abs().max()) <= 1 / 96  # 1 / sqrt(9216)
    assert float(dense.std()) == pytest.approx(1 / 96 / 3**0.5, rel=0.01)


def test_the_vector_is_the_model() -> None:
    model = Model()
    model.load(np.arange(PARAMETER_COUNT, dtype=np.float32))
    assert float(model.parameters[0].flatten()[5]) == 5
    assert float(model.parameters[-1][-1]) == PARAMETER_COUNT - 1
    model.parameters[-1][-1] = 4
    assert model.vector[-1] == 4
    with pytest.raises(WireError, match="expected"):
        model.load(np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize("prox_mu", [0.0, 5.0])
def test_training_equals_torch_sgd(noise: Dataset, prox_mu: float) -> None:
    part = np.arange(70)  # two batches of 32 and one of 6
    model = Model(seed=3)
    net = reference(model)
    origin = [parameter.detach().clone() for parameter in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    order = training.epoch_order(part, seed=5, client_index=1, round_number=2)
    losses = []
    for start in (0, 32, 64):
        images, labels = noise.batch(order[start : start + 32])
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels))
        # FedProx as it is defined: the distance to the round's model is part of what is minimised.
        distance = sum(((p - o) ** 2).sum() for p, o in zip(net.parameters(), origin, strict=True))
        (loss + prox_mu / 2 * distance).backward()
        optimiser.step()
        losses.append(loss.item() * len(labels))
    mean_loss = training.train(model, noise, part, seed=5, client_index=1, round_number=2, prox_mu=prox_mu)
    expected = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    torch.testing.assert_close(model.flat, expected, rtol=1e-6, atol=1e-7)
    assert mean_loss == pytest.approx(sum(losses) / 70, rel=1e-6)
    assert not model.flat.requires_grad


def test_training_is_repeatable_and_order_depends_on_seed_client_and_round(noise: Dataset) -> None:
    part = np.arange(70)

    def trained(seed: int, client_index: int, round_number: int) -> bytes:
        model = Model(seed=0)
        training.train(model, noise, part, seed=seed, client_index=client_index, round_number=round_number)
        return model.vector.tobytes()

    base = trained(0, 0, 1)
    assert trained(0, 0, 1) == base
    assert len({base, trained(1, 0, 1), trained(0, 1, 1), trained(0, 0, 2)}) == 4


def test_each_epoch_sees_every_sample_once() -> None:
    part = np.array([3, 5, 8, 13])
    order = training.epoch_order(part, seed=0, client_index=0, round_number=1)
    assert sorted(order) == [3, 5, 8, 13]


def test_evaluation_counts_the_whole_set(noise: Dataset) -> None:
    model = Model()  # all zero: every logit 0, argmax 0, cross-entropy ln 10
    accuracy, loss = training.evaluate(model, noise)
    assert accuracy == np.count_nonzero(noise.labels == 0) / 70
    assert loss == pytest.approx(np.log(10), rel=1e-5)


def test_the_published_hyper_parameters() -> None:
    assert (training.LEARNING_RATE, training.MOMENTUM, training.BATCH_SIZE, training.LOCAL_EPOCHS) == (
        0.01,
        0.9,
        32,
        1,
    )


def test_training_does_not_load_the_compiler_stack() -> None:
    code = "import sys, fl.training; sys.exit(bool({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
