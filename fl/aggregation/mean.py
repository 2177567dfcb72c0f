"""FedAvg: the mean of the clients' models, weighted by how many samples each trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl.wire import Vector

__all__ = ("fedavg",)


def fedavg(results: Sequence[tuple[Vector, int]]) -> Vector:
    """Average `(vector, num_examples)` pairs into a new float32 vector.

    Sums are kept in float64, one scratch row at a time, so that the order of arrival
    changes nothing beyond the last bit and five 4.8 MB models cost milliseconds.

    :raises ValueError: no results, different lengths, or a weight below 1.
    """
    if not results:
        raise ValueError("FedAvg of no results")
    shape = results[0][0].shape
    if any(vector.shape != shape for vector, _ in results):
        raise ValueError(f"FedAvg of different shapes: {sorted({v.shape for v, _ in results})}")
    if any(num_examples < 1 for _, num_examples in results):
        raise ValueError(f"FedAvg weights are {[n for _, n in results]}, expected at least 1 each")
    total = sum(num_examples for _, num_examples in results)
    mean = np.zeros(shape, dtype=np.float64)
    scratch = np.empty(shape, dtype=np.float64)
    for vector, num_examples in results:
        # dtype: without it numpy would multiply in float32 and only store float64.
        np.multiply(vector, num_examples / total, out=scratch, dtype=np.float64)
        mean += scratch
    return mean.astype(np.float32)
