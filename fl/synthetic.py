"""A client that spends CPU time instead of training: the same messages, at a few tens of megabytes.

It stands for a client whose compute time is given, so that hundreds of them fit on one machine: no
PyTorch, no data set. The time is CPU time of this thread, spent on arithmetic over the model's own
values until the kernel's account of the thread (CLOCK_THREAD_CPUTIME_ID) says that it is used up;
a client that has to wait for a CPU therefore takes longer by that wait, as a real one does. What
it sends differs from the model by a step of fixed length, in a direction drawn from seed, client
and round: the wire and the server cannot tell it from training, accuracy means nothing.
"""

from __future__ import annotations

import time

import numpy as np

from fl import memory
from fl.config import ClientConfig
from fl.errors import WireError
from fl.shapes import size_of
from fl.trainer import Trained
from fl.wire import Vector

__all__ = ("SyntheticTrainer",)

# Of the difference that it sends; an epoch of the digits moves the CNN about as far.
_STEP_NORM = 0.5
# One piece of work takes about 10 microseconds, so the time given is met that closely.
_PIECE = 1 << 14


class SyntheticTrainer:
    """`fl.trainer.Trainer` without training."""

    def __init__(self, config: ClientConfig) -> None:
        memory.give_back()
        self._config = config
        self._vector = np.zeros(size_of(config.model), dtype=np.float32)
        self._compute_ns = round(config.options.of("synthetic_compute_ms") * 1e6)

    @property
    def size(self) -> int:
        """How many values the model has."""
        return len(self._vector)

    def load(self, model: Vector) -> None:
        """Take a copy of the round's model. :raises WireError: it is of another network."""
        if model.shape != self._vector.shape:
            raise WireError(f"model of {model.shape} floats, expected {self._vector.shape}")
        np.copyto(self._vector, model)

    def train(self, round_number: int) -> Trained:
        """Use up the CPU time; making the update is part of it."""
        until_ns = time.thread_time_ns() + self._compute_ns
        self._step(round_number)
        piece = self._vector[:_PIECE].copy()
        while time.thread_time_ns() < until_ns:
            np.sqrt(np.square(piece, out=piece), out=piece)
        return Trained(vector=self._vector, num_examples=1, loss=None)

    def _step(self, round_number: int) -> None:
        # Whole numbers cost a tenth of what normal ones would, and have a length that is known to 0.1 %. They
        # have 16 bits: to choose the largest of few different values takes NumPy ten times as long.
        rng = np.random.default_rng((self._config.seed, self._config.client_index, round_number))
        most = np.float32(_STEP_NORM * (3 / self.size) ** 0.5 / (1 << 15))
        for start in range(0, self.size, _PIECE):
            part = self._vector[start : start + _PIECE]
            part += np.frombuffer(rng.bytes(2 * len(part)), dtype=np.int16) * most
