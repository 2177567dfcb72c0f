"""Tables of a delay's shape, as tc-netem has them: 4096 signed 16-bit samples, scale 8192.

The shapes are computed the way iproute2's generators do (``netem/normal.c``, ``pareto.c``,
``paretonormal.c``), so that a profile means the same as the distribution of that name in tc:
normal has standard deviation 1, pareto and paretonormal have 0.82 and 0.83, because their
authors cut them at 4. A table of measured samples is scaled so
that nothing is cut: its unit is the largest deviation, not the standard deviation.

Both backends draw from the same table, and what is measured is compared with it. Pure.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

__all__ = ("SCALE", "SIZE", "SampledShape", "shape_of_samples", "table")

SCALE = 8192  # NETEM_DIST_SCALE
SIZE = 4096
_FINE = 4 * SIZE  # the generators compute four times as many and print every fourth
_LARGEST = 32767


@functools.cache
def table(distribution: str) -> tuple[int, ...]:
    """The samples of ``uniform``, ``normal``, ``pareto`` or ``paretonormal``, ascending or descending."""
    return tuple(_clip(value) for value in _GENERATORS[distribution]())


def _normal_fine() -> list[float]:
    # The generator walks x in small steps and keeps the last x of every rint(16384 * cdf(x)), which
    # is the inverse of the distribution at (i + 0.5) / 16384.
    inverse = NormalDist().inv_cdf
    return [SCALE * inverse((i + 0.5) / _FINE) for i in range(0, _FINE, 4)]


def _pareto() -> list[float]:
    return [SCALE * _pareto_value(i) for i in range(65536, 0, -16)]


def _pareto_value(i: int) -> float:
    return min((math.pow(65536 / i, 1 / 3) - 1.5) * 4 / 3, _LARGEST / SCALE)


def _paretonormal() -> list[float]:
    normal = _normal_fine()
    pareto = (SCALE * _pareto_value(65536 - 4 * i) for i in range(0, _FINE, 4))
    return [0.25 * n + 0.75 * p for n, p in zip(normal, pareto, strict=True)]


def _uniform() -> list[float]:
    return [SCALE * (2 * (i + 0.5) / SIZE - 1) for i in range(SIZE)]


_GENERATORS = {
    "normal": _normal_fine,
    "pareto": _pareto,
    "paretonormal": _paretonormal,
    "uniform": _uniform,
}


@dataclass(frozen=True, kw_only=True)
class SampledShape:
    """A measured distribution: delay = mean_ms + scale_ms * sample / 8192."""

    mean_ms: float
    sd_ms: float
    scale_ms: float  # what netem calls jitter
    samples: tuple[int, ...]


def shape_of_samples(delays_ms: Sequence[float]) -> SampledShape:
    """The table of measured delays (at least two), by their quantiles."""
    ordered = sorted(delays_ms)
    mean_ms = statistics.fmean(ordered)
    reach_ms = max(mean_ms - ordered[0], ordered[-1] - mean_ms)
    scale_ms = reach_ms * SCALE / _LARGEST
    picked = [ordered[min(int((i + 0.5) / SIZE * len(ordered)), len(ordered) - 1)] for i in range(SIZE)]
    unit = SCALE / scale_ms if scale_ms else 0.0
    return SampledShape(
        mean_ms=mean_ms,
        sd_ms=statistics.pstdev(ordered),
        scale_ms=scale_ms,
        samples=tuple(_clip((value - mean_ms) * unit) for value in picked),
    )


def _clip(value: float) -> int:
    return max(-_LARGEST - 1, min(_LARGEST, round(value) if math.isfinite(value) else _LARGEST))
