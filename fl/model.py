"""The published CNN: 1,199,882 float32 parameters, kept as one flat vector.

conv 1->32 3x3, ReLU, conv 32->64 3x3, ReLU, max-pool 2, dense 9216->128, ReLU,
dense 128->10. A narrow one of the same shape (3,413 parameters, 13.7 kB) is for messages that
fit into TCP's initial window of ten segments. Every layer's weights are views of the
flat vector, so handing the model to the wire or taking it from there is one copy
of 4.8 MB and no concatenation. The layers are applied functionally: there is no `nn.Module` whose
parameters would have to be kept in step with the vector.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from fl.errors import WireError
from fl.shapes import MODELS
from fl.wire import Vector

__all__ = ("Model",)


class Model:
    """One copy of the network.

    :param seed: of the initial weights, PyTorch's default distribution for these layers:
        uniform within 1/sqrt(fan-in). None leaves them zero, for a client that will load them.
    :param name: one of `fl.shapes.MODELS`.
    """

    def __init__(self, seed: int | None = None, name: str = "cnn") -> None:
        self._shapes = MODELS[name]
        self.flat = torch.zeros(sum(math.prod(shape) for shape in self._shapes))
        self.vector: Vector = self.flat.numpy()  # the same memory, for the wire and for FedAvg
        self.parameters = self.views(self.flat)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            for weight, bias in zip(self.parameters[::2], self.parameters[1::2], strict=True):
                bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
                weight.uniform_(-bound, bound, generator=generator)
                bias.uniform_(-bound, bound, generator=generator)

    def load(self, vector: Vector) -> None:
        """Copy `vector` (float32, as many as parameters) into the model, the only copy made.

        :raises WireError: the vector is of another model.
        """
        if vector.shape != self.vector.shape:
            raise WireError(f"model of {vector.shape} floats, expected {self.vector.shape}")
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

    def views(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The layers' tensors (weight, bias, weight, ...) as views of a flat one."""
        parts = torch.split(flat, [math.prod(shape) for shape in self._shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))
