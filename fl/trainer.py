"""What a client does between a model and an update, as the loop in `fl.client` sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fl.wire import Vector

__all__ = ("Trained", "Trainer")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training made of a model; `vector` stays the trainer's and is overwritten by the next round."""

    vector: Vector
    num_examples: int
    loss: float | None


class Trainer(Protocol):
    """Trains on this client's share of the data."""

    @property
    def size(self) -> int:
        """How many values the model has."""
        ...

    def load(self, model: Vector) -> None:
        """Take a copy of the round's model."""
        ...

    def train(self, round_number: int) -> Trained:
        """Train what was loaded."""
        ...
