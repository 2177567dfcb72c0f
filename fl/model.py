"""The published CNN: 1,199,882 float32 parameters, kept as one flat vector.

conv 1->32 3x3, ReLU, conv 32->64 3x3, ReLU, max-pool 2, dense 9216->128, ReLU,
dense 128->10. Every layer's weights are views of the flat vector, so handing the
model to the wire or taking it from there is one copy of 4.8 MB and no
concatenation. The layers are applied functionally: there is no `nn.Module` whose
parameters would have to be kept in step with the vector.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from fl.errors import WireError
from fl.wire import Vector

__all__ = ("CLASSES", "IMAGE_SIZE", "PARAMETER_COUNT", "Model")

CLASSES = 10
IMAGE_SIZE = 28
_LAYERS: tuple[tuple[int, ...], ...] = ((32, 1, 3, 3), (64, 32, 3, 3), (128, 9216), (CLASSES, 128))
_SHAPES = tuple(shape for weight in _LAYERS for shape in (weight, (weight[0],)))
PARAMETER_COUNT = sum(math.prod(shape) for shape in _SHAPES)


class Model:
    """One copy of the network.

    :param seed: of the initial weights, PyTorch's default distribution for these layers:
        uniform within 1/sqrt(fan-in). None leaves them zero, for a client that will load them.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.flat = torch.zeros(PARAMETER_COUNT)
        self.vector: Vector = self.flat.numpy()  # the same memory, for the wire and for FedAvg
        self.parameters = views(self.flat)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            for weight, bias in zip(self.parameters[::2], self.parameters[1::2], strict=True):
                bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
                weight.uniform_(-bound, bound, generator=generator)
                bias.uniform_(-bound, bound, generator=generator)

    def load(self, vector: Vector) -> None:
        """Copy `vector` (PARAMETER_COUNT float32) into the model, the only copy made.

        :raises WireError: the vector is of another model.
        """
        if vector.shape != (PARAMETER_COUNT,):
            raise WireError(f"model of {vector.shape} floats, expected ({PARAMETER_COUNT},)")
        np.copyto(self.vector, vector)

    def forward(
        self, images: torch.Tensor, parameters: tuple[torch.Tensor, ...] | None = None
    ) -> torch.Tensor:
        """Logits (n, 10) of images (n, 1, 28, 28), with the model's own parameters by default."""
        w1, b1, w2, b2, w3, b3, w4, b4 = self.parameters if parameters is None else parameters
        x = functional.relu(functional.conv2d(images, w1, b1))
        x = functional.relu(functional.conv2d(x, w2, b2))
        x = functional.max_pool2d(x, 2).flatten(1)
        return functional.linear(functional.relu(functional.linear(x, w3, b3)), w4, b4)


def views(flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The layers' tensors (weight, bias, weight, ...) as views of a flat one."""
    parts = torch.split(flat, [math.prod(shape) for shape in _SHAPES])
    return tuple(part.view(shape) for part, shape in zip(parts, _SHAPES, strict=True))
