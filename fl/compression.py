"""Shorter updates: what training changed, as half floats, as bytes with scales, or its largest values.

    encoding  body
    FP16      float16[n]
    INT8      float32 scale per block of 1,024 values, then int8[n]; value = scale * integer
    TOP_K     uint32 index[k], strictly rising, then float32 value[k]; everything else is 0

What top-k leaves out is not lost: the client adds it to its next update (error feedback: Stich et al.,
"Sparsified SGD with Memory", NeurIPS 2018). The other two round to the nearest value and forget the rest,
which is below half a step. The model travels down uncompressed: every client gets the same bytes.
"""

from __future__ import annotations

import numpy as np

from fl.errors import WireError
from fl.wire import Encoding, Payload, Vector

__all__ = ("ENCODINGS", "Compressor", "body_bytes", "check", "decode")

ENCODINGS = {
    "none": Encoding.FLOAT32,
    "fp16": Encoding.FP16,
    "int8": Encoding.INT8,
    "top-k": Encoding.TOP_K,
}
_BLOCK = 1024
_PAIR_BYTES = 8
_INDEX, _FLOAT32, _FLOAT16 = np.dtype("<u4"), np.dtype("<f4"), np.dtype("<f2")
_FLOAT16_MOST = np.float32(65504)


def body_bytes(encoding: Encoding, size: int, top_k: int) -> int:
    """Length of an update's body for a model of `size` values."""
    if encoding is Encoding.FP16:
        return 2 * size
    if encoding is Encoding.INT8:
        return size + 4 * _blocks(size)
    return _PAIR_BYTES * top_k if encoding is Encoding.TOP_K else 4 * size


class Compressor:
    """A client's side; keeps what top-k has left out so far."""

    def __init__(self, encoding: Encoding, *, size: int, top_k: int) -> None:
        self._encoding = encoding
        self._top_k = top_k
        self._left_out: Vector | None = (
            np.zeros(size, dtype=np.float32) if encoding is Encoding.TOP_K else None
        )

    def compress(self, delta: Vector) -> Payload:
        """The body of an update that carries `delta` (which is left alone)."""
        if self._encoding is Encoding.FP16:
            half = np.clip(delta, -_FLOAT16_MOST, _FLOAT16_MOST).astype(_FLOAT16)
            return half.view(np.uint8)
        if self._encoding is Encoding.INT8:
            return _to_int8(delta)
        if self._left_out is None:
            raise ValueError(f"{self._encoding.name} is not compressed")
        whole = delta + self._left_out
        split = len(whole) - self._top_k
        largest = np.argpartition(np.abs(whole), split)[split:] if split else np.arange(len(whole))
        indices = np.sort(largest).astype(_INDEX)
        values = whole[indices].astype(_FLOAT32)
        whole[indices] = 0
        self._left_out = whole
        return np.concatenate((indices.view(np.uint8), values.view(np.uint8)))


def decode(encoding: Encoding, payload: Payload, size: int) -> Vector:
    """The difference that a compressed update carries; `check` has passed it."""
    if encoding is Encoding.FP16:
        return payload.view(_FLOAT16).astype(np.float32)
    if encoding is Encoding.INT8:
        scales = payload[: 4 * _blocks(size)].view(_FLOAT32)
        return payload[4 * _blocks(size) :].view(np.int8) * np.repeat(scales, _BLOCK)[:size]
    delta = np.zeros(size, dtype=np.float32)
    indices, values = _pairs(payload)
    delta[indices] = values
    return delta


def check(encoding: Encoding, payload: Payload, size: int) -> None:
    """:raises WireError: the body is not what `encoding` says for a model of `size` values."""
    if encoding is Encoding.TOP_K:
        if payload.size % _PAIR_BYTES or not 0 < payload.size <= _PAIR_BYTES * size:
            raise WireError(
                f"{encoding.name} body of {payload.size} bytes, expected 8 a value, at most {size}"
            )
        indices, _ = _pairs(payload)
        if indices[-1] >= size or (indices[1:] <= indices[:-1]).any():
            raise WireError(f"{encoding.name} body: its indices do not rise, or pass {size - 1}")
    elif payload.size != (wanted := body_bytes(encoding, size, 0)):
        raise WireError(f"{encoding.name} body of {payload.size} bytes, expected {wanted}")


def _blocks(size: int) -> int:
    return -(-size // _BLOCK)


def _pairs(payload: Payload) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint32]], Vector]:
    half = payload.size // 2
    return payload[:half].view(_INDEX), payload[half:].view(_FLOAT32)


def _to_int8(delta: Vector) -> Payload:
    blocks = _blocks(len(delta))
    padded = np.zeros(blocks * _BLOCK, dtype=np.float32)
    padded[: len(delta)] = delta
    rows = padded.reshape(blocks, _BLOCK)
    scales = (np.abs(rows).max(axis=1) / 127).astype(_FLOAT32)
    rows /= np.where(scales > 0, scales, 1)[:, None]
    # A scale of next to nothing (a subnormal number) has few digits, and may be too small for its own values.
    quantised = np.clip(np.rint(padded[: len(delta)]), -127, 127).astype(np.int8)
    return np.concatenate((scales.view(np.uint8), quantised.view(np.uint8)))
