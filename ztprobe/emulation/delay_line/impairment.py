"""What the delay line decides for each packet: lost or not, and how long it is held. Pure.

Every packet gets its own draw, as in netem, so jitter reorders. Correlated draws keep their
distribution: a normal variable that remembers its predecessor picks the quantile. (netem's
own correlation does not survive its table.)

Imports the standard library alone, because the delay line's process starts through here.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

__all__ = ("Condition", "Impairments")

_SAMPLE_SCALE = 8192


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What packets meet from one moment on; travels as JSON."""

    delay_ns: int
    jitter_ns: int = 0
    distribution: str = "none"  # none | uniform | normal, or samples below
    loss_probability: float = 0.0
    # by which the delay is drawn instead: delay + jitter * sample / 8192
    samples: list[int] = field(default_factory=list)
    delay_correlation: float = 0.0
    loss_states: list[float] | None = None  # Gilbert-Elliott: good to bad, bad to good, lost in bad, in good
    reorder_probability: float = 0.0

    @property
    def in_order(self) -> bool:
        """Every packet is held equally long."""
        return not (self.jitter_ns or self.reorder_probability)

    @property
    def shortest_ns(self) -> int:
        """A delay that hardly any draw falls below (4 sigma)."""
        return 0 if self.reorder_probability else self.delay_ns - 4 * self.jitter_ns


class Impairments:
    """The draws of so many pods, reproducible from a seed."""

    def __init__(self, condition: Condition, pods: int, seed: int) -> None:
        self._random = random.Random(seed)
        # Of every pod its own: the last draw (standard normal), and whether its path is in the bad state.
        self._last_draw = [0.0] * pods
        self._bad = [False] * pods
        self.change(condition)

    def change(self, condition: Condition) -> None:
        """Draw from another condition from now on; what a path remembers stays with it."""
        self.condition = condition
        self.may_lose = bool(condition.loss_probability or condition.loss_states)
        self._ascending = sorted(condition.samples)

    def delay_ns(self, pod: int = 0) -> int:
        """One packet's delay, never negative, as netem draws it."""
        condition = self.condition
        delay, jitter = condition.delay_ns, condition.jitter_ns
        if condition.reorder_probability and self._random.random() < condition.reorder_probability:
            return 0
        if not jitter:
            return delay
        if condition.delay_correlation:
            return max(0, delay + int(jitter * self._correlated(pod)))
        if condition.samples:
            return max(0, delay + jitter * self._random.choice(condition.samples) // _SAMPLE_SCALE)
        if condition.distribution == "uniform":
            return max(0, delay + int(jitter * self._random.uniform(-1.0, 1.0)))
        return max(0, int(self._random.gauss(delay, jitter)))

    def _correlated(self, pod: int) -> float:
        rho = self.condition.delay_correlation
        draw = rho * self._last_draw[pod] + math.sqrt(1 - rho * rho) * self._random.gauss(0.0, 1.0)
        self._last_draw[pod] = draw
        if self.condition.distribution == "normal":
            return draw
        quantile = (1 + math.erf(draw / math.sqrt(2))) / 2
        if self.condition.distribution == "uniform":
            return 2 * quantile - 1
        samples = self._ascending
        return samples[min(int(quantile * len(samples)), len(samples) - 1)] / _SAMPLE_SCALE

    def lost(self, pod: int = 0) -> bool:
        """Whether one packet is lost."""
        states = self.condition.loss_states
        draw = self._random.random
        if states is None:
            return draw() < self.condition.loss_probability
        self._bad[pod] ^= draw() < states[self._bad[pod]]
        return draw() < (states[2] if self._bad[pod] else states[3])
