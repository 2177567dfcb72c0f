"""How far from their time packets are let go: quantiles at no memory. Pure."""

from __future__ import annotations

__all__ = ("ErrorHistogram",)


class ErrorHistogram:
    """|release - due| in bins of 10 us up to 20 ms: a median and a p99 at no memory.

    Plain Python, because nearly every batch is a handful of packets.
    """

    BIN_US, BINS = 10, 2000

    def __init__(self) -> None:
        self.counts = [0] * self.BINS
        self.max_us = 0

    def add(self, errors_us: list[int]) -> None:
        """Count a batch (microseconds, negative: early)."""
        for error_us in map(abs, errors_us):
            self.counts[min(error_us // self.BIN_US, self.BINS - 1)] += 1
            self.max_us = max(self.max_us, error_us)

    def quantile_us(self, q: float) -> float | None:
        """The middle of the bin that holds the quantile, microseconds; None: nothing counted."""
        rank = q * sum(self.counts)
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return (index + 0.5) * self.BIN_US
        return None
