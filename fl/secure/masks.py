"""Masks: ChaCha20's key stream as integers modulo 2^64, added to or taken from a vector in place.

In slices that fit into a cache, so that a mask of 9.6 MB is never in memory as a whole.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

__all__ = ("Integers", "add_mask")

Integers: TypeAlias = npt.NDArray[np.uint64]
_SLICE = 1 << 14
_WORD = np.dtype("<u8")
_ZEROS = bytes(_SLICE * _WORD.itemsize)


def add_mask(values: Integers, seed: bytes, sign: int) -> None:
    """Add the mask of a 32-byte seed, `sign` (1 or -1) times, modulo 2^64.

    A seed is used for one mask only, so counter and nonce begin at zero.
    """
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    combine = np.add if sign > 0 else np.subtract
    buffer = np.empty(_SLICE, dtype=_WORD)
    for start in range(0, len(values), _SLICE):
        part = values[start : start + _SLICE]
        length = part.nbytes
        stream.update_into(_ZEROS[:length], buffer.data.cast("B"))
        combine(part, buffer[: len(part)], out=part)
