"""How far from a profile its delay may be before it counts as another one."""

from __future__ import annotations

__all__ = ("mean_tolerance_ms",)

_SHARE = 0.01
_LEAST_MS = 0.2


def mean_tolerance_ms(mean_ms: float) -> float:
    """Of the mean one-way delay, in milliseconds."""
    return max(_SHARE * mean_ms, _LEAST_MS)
