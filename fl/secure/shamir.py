"""Shamir's secret sharing of 32-byte secrets (Communications of the ACM, 1979).

Over the integers modulo the first prime above 2^256, so that every secret is a number of the field; a share
is a point of a random polynomial and takes 33 bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

__all__ = ("PRIME", "SHARE_BYTES", "combine", "split", "weights_at_zero")

PRIME = 2**256 + 297
SHARE_BYTES = 33
_SECRET_BYTES = 32


def split(secret: bytes, *, threshold: int, shares: int) -> list[bytes]:
    """Shares of `secret` at 1 .. `shares`, any `threshold` of which give it back.

    :raises ValueError: another length than 32, or a threshold that cannot be.
    """
    if len(secret) != _SECRET_BYTES or not 1 <= threshold <= shares:
        raise ValueError(f"{threshold} of {shares} shares of {len(secret)} bytes")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, shares + 1)]


def weights_at_zero(places: Sequence[int]) -> list[int]:
    """Lagrange's weights for reading a polynomial at 0 from its values at `places`."""
    weights = []
    for x in places:
        above = below = 1
        for other in places:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights


def combine(shares: Mapping[int, bytes], weights: Sequence[int] | None = None) -> bytes:
    """The secret of exactly `threshold` shares, by place (1 ..).

    :param weights: `weights_at_zero` of the places in the mapping's order, where many secrets have them.
    :raises ValueError: the shares are not of one secret of 32 bytes.
    """
    weights = weights_at_zero(list(shares)) if weights is None else weights
    total = sum(int.from_bytes(s, "big") * w for s, w in zip(shares.values(), weights, strict=True)) % PRIME
    try:
        return total.to_bytes(_SECRET_BYTES, "big")
    except OverflowError:
        raise ValueError("these shares are not of one secret") from None


def _value(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value
