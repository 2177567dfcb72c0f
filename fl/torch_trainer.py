"""A client that trains the CNN on its share of a data set, with PyTorch on one thread."""

from __future__ import annotations

import torch

from fl import data
from fl.config import ClientConfig
from fl.model import Model
from fl.partition import partition
from fl.trainer import Trained
from fl.training import train
from fl.wire import Vector

__all__ = ("TorchTrainer",)


class TorchTrainer:
    """`fl.trainer.Trainer` with the published hyper-parameters (`fl.training`)."""

    def __init__(self, config: ClientConfig) -> None:
        """Load the data and take this client's part. :raises FLError: no such data, or not enough."""
        torch.set_num_threads(1)
        self._config = config
        self._training = data.load(config.dataset, config.data_dir).train
        parts = partition(
            self._training.labels,
            clients=config.clients,
            seed=config.seed,
            distribution=config.distribution,
        )
        self._part = parts[config.client_index][: config.max_samples or None]
        self._model = Model(name=config.model)
        options = config.options
        self._prox_mu: float = options.of("prox_mu") if options.algorithm == "fedprox" else 0.0

    @property
    def size(self) -> int:
        """How many values the model has."""
        return self._model.vector.size

    def load(self, model: Vector) -> None:
        """Take a copy of the round's model. :raises WireError: it is of another network."""
        self._model.load(model)

    def train(self, round_number: int) -> Trained:
        """One local epoch."""
        loss = train(
            self._model,
            self._training,
            self._part,
            seed=self._config.seed,
            client_index=self._config.client_index,
            round_number=round_number,
            prox_mu=self._prox_mu,
        )
        return Trained(vector=self._model.vector, num_examples=len(self._part), loss=loss)
