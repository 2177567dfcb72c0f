"""What so many rounds of noise come to, as epsilon: Opacus' Rényi accountant.

Every client takes part in every round, so nothing is gained by sampling: a round is the Gaussian
mechanism itself, and rounds compose. Neighbours are two runs of which one lacks a client.
Opacus is imported late: it takes a second, and only a run with noise needs it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

__all__ = ("ORDERS", "Accountant", "noise_for")

# Rényi orders: Opacus' own, smaller ones for little noise and larger ones for much.
_SMALL = (1.001, 1.002, 1.005, 1.01, 1.02, 1.05)
_LARGE = (80, 100, 128, 192, 256, 512, 1024, 2048, 4096)
ORDERS = (*_SMALL, *(1 + x / 10 for x in range(1, 100)), *range(12, 64), *_LARGE)


@dataclass(frozen=True, kw_only=True)
class Accountant:
    """Counts a mechanism's privacy loss.

    :param noise_multiplier: the noise's standard deviation over what one client can contribute.
    :param sample_rate: the probability with which a client takes part in a round.
    """

    noise_multiplier: float
    delta: float
    sample_rate: float = 1.0

    def renyi(self, rounds: int) -> list[float]:
        """The Rényi divergence after so many rounds, at each of `ORDERS`."""
        from opacus.accountants.analysis import rdp

        spent = rdp.compute_rdp(
            q=self.sample_rate, noise_multiplier=self.noise_multiplier, steps=rounds, orders=ORDERS
        )
        return [float(one) for one in spent]

    def epsilon(self, rounds: int) -> float:
        """The epsilon for which (epsilon, delta)-DP holds after so many rounds."""
        from opacus.accountants.analysis import rdp

        with warnings.catch_warnings():
            # The first or last order was the best: epsilon holds, another order might give less.
            warnings.simplefilter("ignore", UserWarning)
            spent, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=self.renyi(rounds), delta=self.delta)
        return float(spent)


def noise_for(epsilon: float, *, delta: float, rounds: int) -> float:
    """The least noise multiplier (to 0.1 %) that keeps `rounds` rounds within `epsilon`."""
    low, high = 0.0, 1.0
    while Accountant(noise_multiplier=high, delta=delta).epsilon(rounds) > epsilon:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if Accountant(noise_multiplier=middle, delta=delta).epsilon(rounds) > epsilon:
            low = middle
        else:
            high = middle
    return high
