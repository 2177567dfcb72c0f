"""A look at each client's update: how long it is and where it points, beside the others'.

Norm: of the update (the difference that training made), as a ratio to the median of all.
Direction: the median cosine of the angle between this update and each of the others. Both are
medians, so that a minority cannot move the yardstick: with one attacker among five, each honest
client still has three honest ones to be compared with. An update is unusual if it is several
times as long or as short as the median, if it points away from most others, or if it is not finite.

Honest clients with the same distribution agree in direction; what non-IID data do to that is real
disagreement, and may be flagged. Nothing is left out because of a flag: that is for a robust aggregate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl.aggregation.robust import gram
from fl.wire import Vector

__all__ = ("NORM_RATIO", "Look", "look_at")

# An honest IID client's update was within 1.5 times the median in every round tried (see the tests).
NORM_RATIO = 3.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found; `unusual` names why, empty for an ordinary update."""

    norm: float
    norm_ratio: float
    cosine: float | None  # None: a single update, or one without a direction
    unusual: tuple[str, ...]


def look_at(deltas: Sequence[Vector]) -> list[Look]:
    """One `Look` per update, in their order."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        products = gram(deltas)
        norms = np.sqrt(np.diag(products))
        finite = np.isfinite(norms)
        cosines = products / np.outer(norms, norms)
    np.fill_diagonal(cosines, np.nan)
    middle = float(np.median(norms[finite])) if finite.any() else 0.0
    looks = []
    for norm, row, sound in zip(norms.tolist(), cosines, finite, strict=True):
        known = row[np.isfinite(row)]
        cosine = float(np.median(known)) if known.size else None
        ratio = norm / middle if sound and middle else 1.0
        unusual = ["not finite"] if not sound else []
        if sound and not 1 / NORM_RATIO <= ratio <= NORM_RATIO:
            unusual.append("norm")
        if cosine is not None and cosine < 0:
            unusual.append("direction")
        looks.append(
            Look(norm=norm if sound else 0.0, norm_ratio=ratio, cosine=cosine, unusual=tuple(unusual))
        )
    return looks
