"""Local training and evaluation with the published hyper-parameters.

SGD with momentum is three lines and is written out: `import torch.optim` would pull
in the compiler stack, 0.9 s in every process that was not forked from a warm one.
A test holds it to `torch.optim.SGD`. The momentum starts from zero every round, as a
client's optimiser is made anew for each local training.

Order of samples depends on (seed, client, round) and nothing else, and with one
thread the arithmetic is repeatable, so a run can be repeated bit by bit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from fl.data import Dataset, Indices
from fl.model import Model

__all__ = ("BATCH_SIZE", "LEARNING_RATE", "LOCAL_EPOCHS", "MOMENTUM", "epoch_order", "evaluate", "train")

LEARNING_RATE = 0.01
MOMENTUM = 0.9
BATCH_SIZE = 32
LOCAL_EPOCHS = 1
# Bounds the activations at about 60 MB; larger batches are no faster on one thread.
_EVALUATION_BATCH_SIZE = 256


def epoch_order(part: Indices, *, seed: int, client_index: int, round_number: int, epoch: int = 0) -> Indices:
    """`part` in the order in which this client sees it in this round."""
    rng = np.random.default_rng([seed, client_index, round_number, epoch])
    return part[rng.permutation(len(part))]


def train(
    model: Model,
    dataset: Dataset,
    part: Indices,
    *,
    seed: int,
    client_index: int,
    round_number: int,
    prox_mu: float = 0.0,
) -> float:
    """Train `model` in place on the samples `part` of `dataset` and return the mean loss.

    :param prox_mu: FedProx' weight of half the squared distance to the model as it was given (Li et al.,
        "Federated Optimization in Heterogeneous Networks", MLSys 2020); the loss returned is without it.
    """
    origins = model.views(model.flat.clone()) if prox_mu else ()
    momentum = model.views(torch.zeros_like(model.flat))
    parameters = tuple(p.detach().requires_grad_() for p in model.parameters)
    total_loss = 0.0
    for epoch in range(LOCAL_EPOCHS):
        order = epoch_order(
            part, seed=seed, client_index=client_index, round_number=round_number, epoch=epoch
        )
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            images, labels = _tensors(dataset, batch)
            loss = functional.cross_entropy(model.forward(images, parameters), labels)
            gradients = torch.autograd.grad(loss, parameters)
            if origins:
                for gradient, value, origin in zip(gradients, model.parameters, origins, strict=True):
                    gradient.add_(value - origin, alpha=prox_mu)
            for value, buffer, gradient in zip(model.parameters, momentum, gradients, strict=True):
                buffer.mul_(MOMENTUM).add_(gradient)
                value.add_(buffer, alpha=-LEARNING_RATE)
            total_loss += loss.item() * len(batch)
    return total_loss / (len(part) * LOCAL_EPOCHS)


def evaluate(model: Model, dataset: Dataset) -> tuple[float, float]:
    """Accuracy (0..1) and mean cross-entropy of `model` on the whole of `dataset`."""
    correct, total_loss, count = 0, 0.0, len(dataset)
    with torch.inference_mode():
        for start in range(0, count, _EVALUATION_BATCH_SIZE):
            images, labels = _tensors(dataset, np.arange(start, min(start + _EVALUATION_BATCH_SIZE, count)))
            logits = model.forward(images)
            correct += int((logits.argmax(1) == labels).sum())
            total_loss += functional.cross_entropy(logits, labels, reduction="sum").item()
    return correct / count, total_loss / count


def _tensors(dataset: Dataset, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = dataset.batch(indices)
    return torch.from_numpy(images), torch.from_numpy(labels)
