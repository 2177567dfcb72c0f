"""Server optimisers: the round's mean update as a gradient.

FedAdagrad, FedAdam and FedYogi of Reddi et al., "Adaptive Federated Optimization", ICLR 2021
(algorithm 2), in the form of Flower's strategies: Adagrad without momentum, Adam with the step length
corrected for the moments' bias as of round + 1. A test holds them to vectors computed by Flower.
Without an optimiser the server takes the mean update as it is (FedAvg).
"""

from __future__ import annotations

import math

import numpy as np

from fl.wire import Vector

__all__ = ("BETA_1", "BETA_2", "ServerOptimizer")

BETA_1, BETA_2 = 0.9, 0.99


class ServerOptimizer:
    """Keeps the moments between rounds.

    :param kind: fedadagrad, fedadam or fedyogi.
    :param server_lr: step length.
    :param tau: added to the root of the second moment; small means adaptive.
    """

    def __init__(self, kind: str, *, size: int, server_lr: float, tau: float) -> None:
        self._kind = kind
        self._server_lr = server_lr
        self._tau = tau
        self._beta_1 = 0.0 if kind == "fedadagrad" else BETA_1
        self._first = np.zeros(size, dtype=np.float32)
        self._second = np.zeros(size, dtype=np.float32)

    def step(self, delta: Vector, round_number: int) -> Vector:
        """How the model moves, given the round's mean update."""
        squared = delta * delta
        self._first *= np.float32(self._beta_1)
        self._first += np.float32(1 - self._beta_1) * delta
        if self._kind == "fedadagrad":
            self._second += squared
        elif self._kind == "fedadam":
            self._second *= np.float32(BETA_2)
            self._second += np.float32(1 - BETA_2) * squared
        else:
            self._second -= np.float32(1 - BETA_2) * squared * np.sign(self._second - squared)
        root = np.sqrt(self._second) + np.float32(self._tau)
        step: Vector = np.divide(self._first * np.float32(self._length(round_number)), root, dtype=np.float32)
        return step

    def _length(self, round_number: int) -> float:
        if self._kind != "fedadam":
            return self._server_lr
        exponent = round_number + 1
        return self._server_lr * math.sqrt(1 - BETA_2**exponent) / (1 - BETA_1**exponent)
