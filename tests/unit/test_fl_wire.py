"""The wire format: what is written is read back, nothing is copied that need not be, rubbish is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl import wire
from fl.errors import WireError
from fl.wire import Kind


@given(
    kind=st.sampled_from((Kind.MODEL, Kind.UPDATE)),
    round_number=st.integers(0, 2**32 - 1),
    client_id=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=15),
    num_examples=st.integers(0, 2**32 - 1),
    floats=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50),
)
def test_round_trip(
    kind: Kind, round_number: int, client_id: str, num_examples: int, floats: list[float]
) -> None:
    body = np.array(floats, dtype=np.float32)
    raw = wire.encode(kind, round_number, client_id=client_id, num_examples=num_examples, body=body)
    message = wire.decode(raw)
    assert (message.kind, message.round, message.client_id, message.num_examples) == (
        kind,
        round_number,
        client_id,
        num_examples,
    )
    assert message.body.tobytes() == body.tobytes()


def test_layout_is_as_documented() -> None:
    raw = wire.encode(Kind.UPDATE, 7, client_id="fl-client-3", num_examples=287, body=np.float32([1.0, -2.5]))
    assert raw[:24] == b"ZTFL" + struct.pack("<HHIIQ", 1, 3, 7, 287, 8)
    assert raw[24:88] == b"fl-client-3".ljust(64, b"\0")
    assert raw[88:] == struct.pack("<2f", 1.0, -2.5)
    assert wire.HEADER_BYTES == 88


def test_decoding_copies_nothing() -> None:
    raw = wire.encode(Kind.MODEL, 1, body=np.arange(1000, dtype=np.float32))
    body = wire.decode(raw).body
    address = np.frombuffer(raw, dtype=np.uint8).ctypes.data
    assert body.ctypes.data == address + wire.HEADER_BYTES
    assert not body.flags.writeable


def test_messages_without_a_body() -> None:
    assert len(wire.encode(Kind.HELLO, 0, client_id="fl-client-0")) == wire.HEADER_BYTES
    assert wire.decode(wire.encode(Kind.DONE, 10)).body.size == 0


GOOD = wire.encode(Kind.MODEL, 1, body=np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "0 bytes is shorter than the 88-byte header"),
        (GOOD[:87], "shorter than"),
        (b"HTTP" + GOOD[4:], "another protocol"),
        (GOOD[:4] + b"\x02\x00" + GOOD[6:], "version 2, expected 1"),
        (GOOD[:6] + b"\x63\x00" + GOOD[8:], "kind 99, expected one of 1 HELLO"),
        (GOOD[:-4], "announces a body of 12 bytes, 8 bytes follow"),
        (GOOD + b"\0", "announces a body of 12 bytes, 13 bytes follow"),
        (GOOD[:16] + struct.pack("<Q", 13) + GOOD[24:] + b"\0", "13 bytes, expected 3 floats"),
        (GOOD[:6] + b"\x04\x00" + GOOD[8:], "DONE has a body of 12 bytes, expected none"),
        (GOOD[:24] + b"\xff" * 64 + GOOD[88:], "not UTF-8"),
    ],
)
def test_rubbish_is_refused_with_what_was_seen(raw: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says) as caught:
        wire.decode(raw, expected_floats=3)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_size_is_refused() -> None:
    with pytest.raises(WireError, match="12 bytes, expected 4 floats"):
        wire.decode(GOOD, expected_floats=4)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"client_id": "x" * 64}, "longer than 63 bytes"),
        ({"client_id": "a\0b"}, "NUL"),
        ({"num_examples": 2**32}, "MODEL of round 1"),
        ({"num_examples": -1}, "MODEL of round 1"),
        ({"body": np.zeros(3)}, "float64"),
        ({"body": np.zeros((2, 2), dtype=np.float32)}, "float32"),
        ({"body": np.zeros(6, dtype=np.float32)[::2]}, "contiguous"),
    ],
)
def test_what_does_not_fit_is_not_sent(fields: dict[str, object], says: str) -> None:
    with pytest.raises(WireError, match=says):
        wire.encode(Kind.MODEL, 1, **fields)  # type: ignore[arg-type]
