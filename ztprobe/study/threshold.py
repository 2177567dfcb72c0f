"""Bisection for the value at which a deployment stops working, apart from what a value is tried with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ("AXES", "Axis", "Threshold", "find_threshold")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is varied, from where anything works to where nothing does."""

    name: str
    unit: str
    key: str | None  # of a profile; None: it is no network profile's value
    easiest: float
    hardest: float
    is_whole: bool = False
    is_ratio: bool = False  # values are compared by their ratio

    def between(self, works: float, fails: float) -> float:
        """The next value to be tried, with three digits, or a whole number."""
        if self.is_whole:
            return float((works + fails) // 2)
        middle = math.sqrt(works * fails) if self.is_ratio else (works + fails) / 2
        return float(f"{middle:.3g}")

    def is_narrow(self, works: float, fails: float, precision: float) -> bool:
        """Whether two values are as near to each other as was asked for (or as they can be)."""
        if self.is_whole:
            return abs(works - fails) <= 1
        if self.between(works, fails) in (works, fails):
            return True
        return abs(works - fails) <= precision * max(works, fails)

    def words(self, value: float) -> str:
        """With its unit: ``250 ms``, ``12.5 %``."""
        return f"{value:g}{' ' if self.unit else ''}{self.unit}"


AXES = {
    axis.name: axis
    for axis in (
        Axis(name="delay", unit="ms", key="delay_ms", easiest=10, hardest=20_000, is_ratio=True),
        Axis(name="loss", unit="%", key="loss_pct", easiest=0, hardest=90),
        Axis(name="rate", unit="Mbit/s", key="rate_mbit", easiest=100, hardest=0.01, is_ratio=True),
        Axis(name="clients-missing", unit="", key=None, easiest=0, hardest=0, is_whole=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Between which values it lies; None on a side where none was found."""

    works: float | None
    fails: float | None


def find_threshold(
    axis: Axis, easiest: float, hardest: float, precision: float, works: Callable[[float], bool]
) -> Threshold:
    """Both ends first, then their middle, again and again.

    :param precision: how far its two sides may lie apart, as a share of the larger one (0..1).
    :param works: tries a value.
    """
    if not works(easiest):
        return Threshold(works=None, fails=easiest)
    if works(hardest):
        return Threshold(works=hardest, fails=None)
    good, bad = easiest, hardest
    while not axis.is_narrow(good, bad, precision):
        value = axis.between(good, bad)
        if works(value):
            good = value
        else:
            bad = value
    return Threshold(works=good, fails=bad)
