"""A look at each client's updates: how long they are and where they point, beside the others'.

Near the optimum the updates of honest clients are mostly noise: in single rounds on IID data, a
quarter of them pointed away from most others and one was 3.8 times as long as the median. So what
is judged is not one round but all rounds so far, each weighing 0.95 times as much as the one after
it. Only the inner products of the updates have to be kept for that, not the updates: the sum of
faded inner products is that of the rounds laid end to end.

Norm: of a client's faded rounds, as a ratio to the median of all. Direction: the median cosine of the
angle between its faded rounds and each other client's. Both are medians, so that a minority cannot
move the yardstick: with one attacker among five, each honest client still has three honest ones to
be compared with. The price is that a client that turns hostile late is noticed some rounds later.

Honest clients with the same distribution agree in direction; what non-IID data do to that is real
disagreement, and may be flagged. Nothing is left out because of a flag: that is for a robust aggregate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl.aggregation.robust import gram
from fl.wire import Vector

__all__ = ("NORM_RATIO", "Inspector", "Look")

_FADING = 0.95
# Honest IID clients stayed within 0.57 .. 1.54 in 40 rounds with each aggregate.
NORM_RATIO = 3.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found; `unusual` names why (norm, direction, not finite), empty for an ordinary update."""

    norm: float | None  # of this round's update; None: not finite
    norm_ratio: float | None  # of the faded rounds; None: there is nothing to compare with
    cosine: float | None  # likewise
    unusual: tuple[str, ...]


class Inspector:
    """Remembers the rounds so far, as inner products between clients."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._faded: npt.NDArray[np.float64] = np.zeros((0, 0))

    def look(self, clients: Sequence[str], deltas: Sequence[Vector]) -> list[Look]:
        """Take in a round; one `Look` per update, in their order."""
        with np.errstate(invalid="ignore", over="ignore"):
            products = gram(deltas)
        sound = np.isfinite(np.diag(products))
        rows = self._take(clients, np.where(np.outer(sound, sound), products, 0.0))
        lengths = np.sqrt(np.diag(self._faded))
        known = lengths > 0
        middle = float(np.median(lengths[known])) if known.any() else 0.0
        looks = []
        for position, row in enumerate(rows):
            others = known.copy()
            others[row] = False
            ratio = cosine = None
            if known[row]:
                ratio = float(lengths[row] / middle)
            if known[row] and others.any():
                cosine = float(np.median(self._faded[row, others] / lengths[others]) / lengths[row])
            norm = float(np.sqrt(products[position, position])) if sound[position] else None
            looks.append(_judged(norm, ratio, cosine))
        return looks

    def _take(self, clients: Sequence[str], products: npt.NDArray[np.float64]) -> list[int]:
        for client in clients:
            self._rows.setdefault(client, len(self._rows))
        grown = np.zeros((len(self._rows), len(self._rows)))
        before = len(self._faded)
        grown[:before, :before] = _FADING * self._faded
        rows = [self._rows[client] for client in clients]
        grown[np.ix_(rows, rows)] += products
        self._faded = grown
        return rows


def _judged(norm: float | None, ratio: float | None, cosine: float | None) -> Look:
    unusual = ["not finite"] if norm is None else []
    if ratio is not None and not 1 / NORM_RATIO <= ratio <= NORM_RATIO:
        unusual.append("norm")
    if cosine is not None and cosine < 0:
        unusual.append("direction")
    return Look(norm=norm, norm_ratio=ratio, cosine=cosine, unusual=tuple(unusual))
