"""Compressed updates: how long they are, how close they come, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl import compression, wire
from fl.compression import Compressor, body_bytes, check, decode
from fl.errors import WireError
from fl.shapes import size_of
from fl.wire import Encoding, Kind

SIZE = size_of("cnn")
COMPRESSED = [Encoding.FP16, Encoding.INT8, Encoding.TOP_K]


def delta(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.01, size=size).astype(np.float32)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (Encoding.FLOAT32, 4_799_528),
        (Encoding.FP16, 2_399_764),
        (Encoding.INT8, 1_199_882 + 4 * 1172),  # a scale for each 1,024 values
        (Encoding.TOP_K, 8 * 12_000),
    ],
)
def test_bytes_of_the_published_model(encoding: Encoding, expected: int) -> None:
    assert body_bytes(encoding, SIZE, 12_000) == expected
    if encoding is not Encoding.FLOAT32:
        made = Compressor(encoding, size=SIZE, top_k=12_000).compress(delta(SIZE))
        message = wire.encode(Kind.UPDATE, 1, client_id="c", num_examples=1, encoding=encoding, payload=made)
        assert len(message) == wire.HEADER_BYTES + expected


@settings(deadline=None)
@given(
    encoding=st.sampled_from(COMPRESSED),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=3000),
)
def test_what_is_read_back_is_close(encoding: Encoding, values: list[float]) -> None:
    vector = np.float32(values)
    before = vector.copy()
    payload = Compressor(encoding, size=len(vector), top_k=len(vector)).compress(vector)
    assert np.array_equal(vector, before)
    check(encoding, payload, len(vector))
    back = decode(encoding, payload, len(vector))
    assert back.dtype == np.float32
    error = np.abs(back - vector)
    if encoding is Encoding.TOP_K:
        assert not error.any()
    elif encoding is Encoding.FP16:
        assert (error <= np.abs(vector) * 2.0**-11 + 2.0**-25).all()  # half a unit of 11 bits, or subnormal
    else:
        # Half of a block's step, a float32 itself: 127 of them are off by half of its last unit each.
        subnormal = 127 / 2 * float(np.finfo(np.float32).smallest_subnormal)
        for start in range(0, len(vector), 1024):
            block = slice(start, start + 1024)
            assert error[block].max() <= float(np.abs(vector[block]).max()) / 127 * 0.5001 + subnormal


def test_top_k_takes_the_largest_and_owes_the_rest() -> None:
    compressor = Compressor(Encoding.TOP_K, size=4, top_k=1)
    sent = np.zeros(4, dtype=np.float32)
    owed = np.float32([5, -6, 0.5, 2])
    first = decode(Encoding.TOP_K, compressor.compress(owed), 4)
    assert first.tolist() == [0, -6, 0, 0]
    sent += first
    for _ in range(2):
        sent += decode(Encoding.TOP_K, compressor.compress(np.zeros(4, dtype=np.float32)), 4)
    assert sent.tolist() == [5, -6, 0, 2]


def test_error_feedback_brings_everything_over_in_the_end() -> None:
    compressor = Compressor(Encoding.TOP_K, size=1000, top_k=100)
    given_, got = np.zeros(1000), np.zeros(1000)
    for number in range(50):
        one = delta(1000, number)
        given_ += one
        got += decode(Encoding.TOP_K, compressor.compress(one), 1000)
    # What is still owed is bounded: about a tenth a round is sent, so that of some ten rounds is left.
    assert np.linalg.norm(given_ - got) < 0.5 * np.linalg.norm(given_)
    for _ in range(10):
        got += decode(Encoding.TOP_K, compressor.compress(np.zeros(1000, dtype=np.float32)), 1000)
    assert np.allclose(given_, got, atol=1e-6)


def test_half_floats_do_not_overflow() -> None:
    payload = Compressor(Encoding.FP16, size=2, top_k=1).compress(np.float32([1e6, -1e6]))
    assert decode(Encoding.FP16, payload, 2).tolist() == [65504, -65504]


@pytest.mark.parametrize(
    ("encoding", "payload", "says"),
    [
        (Encoding.FP16, b"\0" * 7, "FP16 body of 7 bytes, expected 8"),
        (Encoding.INT8, b"\0" * 4, "INT8 body of 4 bytes, expected 8"),
        (Encoding.TOP_K, b"", "0 bytes, expected 8 a value, at most 4"),
        (Encoding.TOP_K, b"\0" * 12, "12 bytes, expected 8 a value"),
        (Encoding.TOP_K, b"\0" * 40, "40 bytes, expected 8 a value, at most 4"),
        (Encoding.TOP_K, np.uint32([4, 0]).tobytes(), "its indices do not rise, or pass 3"),
        (Encoding.TOP_K, np.uint32([1, 1, 0, 0]).tobytes(), "its indices do not rise"),
    ],
)
def test_a_body_that_is_not_what_it_says(encoding: Encoding, payload: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        check(encoding, np.frombuffer(payload, dtype=np.uint8), 4)


def test_an_encoding_on_the_wire() -> None:
    payload = np.arange(8, dtype=np.uint8)
    raw = wire.encode(Kind.UPDATE, 2, client_id="c", num_examples=3, encoding=Encoding.FP16, payload=payload)
    assert raw[4:6] == b"\x01\x01"
    message = wire.decode(raw, expected_floats=4)
    assert (message.encoding, message.body.size, message.body_bytes) == (Encoding.FP16, 0, 8)
    assert message.payload.tobytes() == payload.tobytes()
    assert decode(message.encoding, message.payload, 4).tolist() == payload.view(np.float16).tolist()
    with pytest.raises(WireError, match="MODEL may not be FP16"):
        wire.decode(raw[:6] + b"\x02\x00" + raw[8:])
    with pytest.raises(WireError, match="encoding 9, expected one of 0 FLOAT32"):
        wire.decode(raw[:5] + b"\x09" + raw[6:])


def test_every_choice_has_an_encoding() -> None:
    from fl.options import FlOptions

    choices = FlOptions.__dataclass_fields__["compression"].metadata["choices"]
    assert tuple(compression.ENCODINGS) == choices
