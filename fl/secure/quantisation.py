"""Updates as integers modulo 2^64, whose sum is exact whatever the order.

A value is the update's, times the client's weight, in steps of 2^-24; one more value at the end is the
weight itself, so that the server gets the weighted mean from the sums alone. Negative numbers are two's
complement. A client's value is cut off where the sum of all clients might no longer fit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fl.secure.masks import Integers
from fl.wire import Vector

__all__ = ("STEP", "mean_of", "quantised", "sums_of")

STEP = 2.0**-24
_MOST = 2.0**62


def quantised(delta: Vector, weight: int, *, clients: int) -> Integers:
    """`len(delta) + 1` integers; what is not a number counts as 0."""
    scaled = np.empty(len(delta) + 1)
    np.multiply(delta, weight / STEP, out=scaled[:-1], dtype=np.float64)
    scaled[-1] = weight
    np.nan_to_num(scaled, copy=False, nan=0.0)
    np.clip(np.rint(scaled, out=scaled), -_MOST / clients, _MOST / clients, out=scaled)
    return scaled.astype(np.int64).view(np.uint64)


def sums_of(total: Integers) -> tuple[npt.NDArray[np.float64], int]:
    """The weighted sum of the updates, and the sum of the weights."""
    signed = total.view(np.int64)
    return np.multiply(signed[:-1], STEP, dtype=np.float64), int(signed[-1])


def mean_of(total: Integers) -> Vector:
    """The weighted mean. :raises ValueError: the weights' sum is not above 0."""
    summed, weight = sums_of(total)
    if weight <= 0:
        raise ValueError(f"the weights' sum is {weight}: a client dropped out that was not taken out")
    return (summed / weight).astype(np.float32)
