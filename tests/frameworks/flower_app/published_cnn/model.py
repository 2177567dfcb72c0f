"""The published CNN (1,199,882 float32 parameters), its training and its made-up images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

BATCH = 32


def published_cnn() -> nn.Sequential:
    """conv 1→32 3×3, conv 32→64 3×3, max-pool 2, dense 9216→128, dense 128→10."""
    layers = OrderedDict(
        conv1=nn.Conv2d(1, 32, 3),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 64, 3),
        relu2=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        flat=nn.Flatten(),
        dense1=nn.Linear(9216, 128),
        relu3=nn.ReLU(),
        dense2=nn.Linear(128, 10),
    )
    return nn.Sequential(layers)


def images(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of noise with a bright bar at a place that depends on the label."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=random)
    pixels = torch.rand(count, 1, 28, 28, generator=random) * 0.3
    for i, label in enumerate(labels.tolist()):
        pixels[i, 0, 2 * label + 3 : 2 * label + 6, :] += 0.7
    return pixels, labels


def train(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, epochs: int) -> float:
    """SGD as published. :returns: the last batch's loss"""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = torch.zeros(())
    for _ in range(epochs):
        for batch, wanted in zip(pixels.split(BATCH), labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch), wanted)
            loss.backward()
            optimizer.step()
    return loss.item()


def accuracy(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images that the model puts right."""
    with torch.no_grad():
        return float((model(pixels).argmax(1) == labels).float().mean())
