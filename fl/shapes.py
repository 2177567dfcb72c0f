"""The shapes of the networks, for those who move models without computing with them (no PyTorch here)."""

from __future__ import annotations

import math
from typing import TypeAlias

__all__ = ("CLASSES", "MODELS", "Shapes", "size_of")

CLASSES = 10
Shapes: TypeAlias = tuple[tuple[int, ...], ...]


def _with_biases(*weights: tuple[int, ...]) -> Shapes:
    return tuple(shape for weight in weights for shape in (weight, (weight[0],)))


# Name -> shapes of weights and biases, layer by layer.
MODELS: dict[str, Shapes] = {
    "cnn": _with_biases((32, 1, 3, 3), (64, 32, 3, 3), (128, 9216), (CLASSES, 128)),
    "narrow": _with_biases((4, 1, 3, 3), (2, 4, 3, 3), (11, 288), (CLASSES, 11)),
}


def size_of(name: str) -> int:
    """How many values the named network has."""
    return sum(math.prod(shape) for shape in MODELS[name])
