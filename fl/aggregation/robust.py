"""Aggregates that a minority of hostile clients cannot move at will.

Coordinate-wise median and trimmed mean: Yin et al., "Byzantine-Robust Distributed Learning:
Towards Optimal Statistical Rates", ICML 2018. Krum: Blanchard et al., "Machine Learning
with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017. All of them ignore the
numbers of examples: a weight is one more thing that a hostile client can choose.

Coordinates are taken in slices, so that the working memory is that of a few rows whatever the
number of clients. A value that is not finite sorts to the end; Krum never chooses such an update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fl.wire import Vector

__all__ = ("gram", "krum", "median", "slices", "trimmed_mean")

_SLICE = 1 << 16


def slices(size: int) -> Iterator[slice]:
    """`size` coordinates in pieces that fit into a cache."""
    return (slice(start, min(start + _SLICE, size)) for start in range(0, size, _SLICE))


def median(rows: Sequence[Vector]) -> Vector:
    """The median of each coordinate (the middle two's mean for an even number)."""
    return trimmed_mean(rows, (len(rows) - 1) // 2)


def trimmed_mean(rows: Sequence[Vector], trimmed: int) -> Vector:
    """The mean of each coordinate without its `trimmed` least and greatest values.

    :raises ValueError: nothing would be left.
    """
    if not 0 <= 2 * trimmed < len(rows):
        raise ValueError(f"trimming {trimmed} at each end of {len(rows)} updates leaves none")
    centre = np.empty_like(rows[0])
    for part in slices(len(centre)):
        ordered = np.sort(np.stack([row[part] for row in rows]), axis=0)
        centre[part] = ordered[trimmed : len(rows) - trimmed].mean(axis=0, dtype=np.float64)
    return centre


def gram(rows: Sequence[Vector]) -> npt.NDArray[np.float64]:
    """The inner products of all pairs, (n, n), summed in float64."""
    products = np.zeros((len(rows), len(rows)))
    for part in slices(len(rows[0])):
        piece = np.stack([row[part] for row in rows]).astype(np.float64)
        products += piece @ piece.T
    return products


def krum(rows: Sequence[Vector], hostile: int) -> int:
    """The index of the update whose n - f - 2 nearest others are nearest (the first of equals).

    :raises ValueError: fewer than 2f + 3 updates, for which the guarantee does not hold.
    """
    if hostile < 0 or len(rows) < 2 * hostile + 3:
        raise ValueError(f"Krum with f = {hostile} needs {2 * hostile + 3} updates, there are {len(rows)}")
    with np.errstate(invalid="ignore", over="ignore"):
        products = gram(rows)
        squares = np.diag(products)
        distances = squares[:, None] + squares[None, :] - 2 * products
    distances[~np.isfinite(distances)] = np.inf
    np.fill_diagonal(distances, np.inf)  # an update is no neighbour of its own
    nearest = np.sort(distances, axis=1)[:, : len(rows) - hostile - 2]
    return int(np.argmin(nearest.sum(axis=1)))
