"""Clip and noise: DP-FedAvg with a fixed clipping norm and a trusted server.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018. Each update
counts alike (numbers of examples are private too) and is at most `clip` long: clients clip what they send,
and the server clips what it sees again, so that no client has to be trusted for the others' privacy. The
sum gets Gaussian noise of standard deviation noise_multiplier * clip in every value, and is divided
by the number of updates.

The noise comes from numpy's generator, seeded from the operating system's entropy and not from the run's
seed: who knows the seed could take it away again. It is not a cryptographic generator, and floating-point
numbers leak through their low bits (Mironov, CCS 2012); this measures what privacy costs in a round, it is no
vault.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fl.errors import ConfigError
from fl.options import FlOptions
from fl.privacy.accounting import Accountant, noise_for
from fl.wire import Vector

__all__ = ("Mechanism", "clipped")


def clipped(delta: Vector, clip: float) -> Vector:
    """`delta`, no longer than `clip`; what is not finite is nothing at all."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.linalg.norm(delta))
    if norm <= clip:
        return delta
    if not np.isfinite(norm):
        return np.zeros_like(delta)
    # Rounding may leave the product a little longer than the clip; the noise is for the clip.
    return delta * np.float32(clip / norm * (1 - 1e-6))


class Mechanism:
    """The server's part, for one run.

    :param rng: where the noise comes from; only tests give one.
    """

    def __init__(self, options: FlOptions, rounds: int, rng: np.random.Generator | None = None) -> None:
        """:raises ConfigError: Opacus is not installed."""
        try:
            self.accountant = _accountant(options, rounds)
            self.accountant.epsilon(1)
        except ImportError as error:
            raise ConfigError(
                f"privacy dp needs the accountant of Opacus: pip install opacus ({error})"
            ) from None
        self._clip: float = options.of("dp_clip")
        self._rng = rng or np.random.default_rng()

    def mean(self, deltas: Sequence[Vector]) -> tuple[Vector, int]:
        """The noised mean of the clipped updates, and how many the server had to clip."""
        total = np.zeros(len(deltas[0]), dtype=np.float64)
        longer = 0
        for delta in deltas:
            short = clipped(delta, self._clip)
            longer += short is not delta
            total += short
        return self.noised_mean(total, len(deltas)), longer

    def noised_mean(self, total: npt.NDArray[np.float64], count: int) -> Vector:
        """The mean of `count` updates whose sum is `total`, noise added."""
        noise = self._rng.standard_normal(len(total), dtype=np.float32)
        noise *= np.float32(self.accountant.noise_multiplier * self._clip)
        return ((total + noise) / count).astype(np.float32)


def _accountant(options: FlOptions, rounds: int) -> Accountant:
    delta: float = options.of("dp_delta")
    noise: float | None = options.dp_noise_multiplier
    if noise is None:
        noise = noise_for(options.of("dp_epsilon"), delta=delta, rounds=rounds)
    return Accountant(noise_multiplier=noise, delta=delta)
