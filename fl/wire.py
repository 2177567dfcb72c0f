"""Messages on the stream: a fixed header, then the model as raw little-endian float32.

    offset size field
         0    4 magic         b"ZTFL"
         4    1 version       1
         5    1 encoding      of the body: 0 FLOAT32; an UPDATE's may be 1 FP16, 2 INT8, 3 TOP_K
                              (`fl.compression`); 4 OPAQUE from kind 5 on
         6    2 kind          1 HELLO, 2 MODEL, 3 UPDATE, 4 DONE; secure aggregation (`fl.secure.messages`):
                              5 ADVERTISE, 6 KEYS, 7 SHARES, 8 INBOX, 9 MASKED, 10 SURVIVORS, 11 UNMASK
         8    4 round         1.. ; 0 in HELLO; the last round in DONE
        12    4 num_examples  UPDATE: samples trained on; otherwise 0
        16    8 body_bytes    length of what follows the header; 0 for HELLO and DONE
        24   64 client_id     UTF-8, padded with NUL: the sender (HELLO, UPDATE), else empty
        88    - body          float32[] (MODEL, UPDATE), or what the encoding says

All integers are little-endian. gRPC carries each message as opaque bytes (identity
serialisers), so HTTP/2 framing, flow control and status codes are those of any gRPC
service.

Why not protobuf for the body: a `bytes` field of 4.8 MB would be copied twice on
each side (array to field and field to serialised message, and the reverse), and a
`repeated float` field would become Python objects on the way. Here encoding is one
copy, out of the training buffer, and decoding is none: the array is a view of the
received bytes. What a protobuf schema would add, evolution of the fields, the
version number covers for six fields.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fl.errors import WireError

__all__ = (
    "CLIENT_ID_BYTES",
    "HEADER_BYTES",
    "VERSION",
    "Encoding",
    "Kind",
    "Message",
    "Payload",
    "Vector",
    "decode",
    "encode",
)

Vector: TypeAlias = npt.NDArray[np.float32]
Payload: TypeAlias = npt.NDArray[np.uint8]

MAGIC = b"ZTFL"
VERSION = 1
# A Kubernetes pod that belongs to a Job has a name of at most 63 characters (a DNS label).
CLIENT_ID_BYTES = 64
_HEADER = struct.Struct(f"<4sBBHIIQ{CLIENT_ID_BYTES}s")
HEADER_BYTES = _HEADER.size
_FLOAT32 = np.dtype("<f4")
_EMPTY: Vector = np.empty(0, dtype=_FLOAT32)
_NOTHING: Payload = np.empty(0, dtype=np.uint8)


class Kind(IntEnum):
    """What a message is for."""

    HELLO = 1  # client: I am here, send me the open round's model
    MODEL = 2  # server: train on this
    UPDATE = 3  # client: this is what training made of it
    DONE = 4  # server: there is no further round
    ADVERTISE = 5  # client: my keys
    KEYS = 6  # server: everybody's
    SHARES = 7  # client: my secrets, in sealed pieces
    INBOX = 8  # server: the pieces for you
    MASKED = 9  # client: what training made of it, masked
    SURVIVORS = 10  # server: who is in the sum
    UNMASK = 11  # client: pieces of what has to be taken out of it


class Encoding(IntEnum):
    """What the bytes of a body are."""

    FLOAT32 = 0  # the model itself
    FP16 = 1  # the others: what training changed
    INT8 = 2
    TOP_K = 3
    OPAQUE = 4  # what the kind says


@dataclass(frozen=True, kw_only=True)
class Message:
    """One decoded message; `body` (FLOAT32) or `payload` (else) is a read-only view of the received bytes."""

    kind: Kind
    round: int
    client_id: str = ""
    num_examples: int = 0
    encoding: Encoding = Encoding.FLOAT32
    body: Vector = field(default_factory=lambda: _EMPTY, compare=False)
    payload: Payload = field(default_factory=lambda: _NOTHING, compare=False)

    @property
    def body_bytes(self) -> int:
        """What follows the header."""
        return self.body.nbytes + self.payload.nbytes


def encode(
    kind: Kind,
    round_number: int,
    *,
    client_id: str = "",
    num_examples: int = 0,
    body: Vector | None = None,
    encoding: Encoding = Encoding.FLOAT32,
    payload: Payload | None = None,
) -> bytes:
    """Lay a message out as bytes, copying `body` (contiguous float32) or `payload` exactly once.

    :raises WireError: a field does not fit the header, or the body is not a float32 vector.
    """
    name = client_id.encode()
    if len(name) > CLIENT_ID_BYTES - 1 or b"\0" in name:
        raise WireError(f"client id {client_id!r}: longer than {CLIENT_ID_BYTES - 1} bytes or holds a NUL")
    wanted = _FLOAT32 if payload is None else _NOTHING.dtype
    array: Vector | Payload = payload if payload is not None else _EMPTY if body is None else body
    if array.dtype != wanted or array.ndim != 1 or not array.flags.c_contiguous:
        raise WireError(f"body is {array.dtype}{list(array.shape)}, expected a contiguous {wanted} vector")
    try:
        header = _HEADER.pack(MAGIC, VERSION, encoding, kind, round_number, num_examples, array.nbytes, name)
    except struct.error as error:
        raise WireError(f"{kind.name} of round {round_number}, {num_examples} examples: {error}") from error
    return b"".join((header, array.data.cast("B"))) if array.nbytes else header


def decode(raw: bytes, expected_floats: int | None = None) -> Message:
    """Read a message without copying its body.

    :param expected_floats: what a MODEL or an uncompressed UPDATE must hold; None accepts any number.
    :raises WireError: not this protocol, another version, an unknown kind or a wrong length.
    """
    if len(raw) < HEADER_BYTES:
        raise WireError(f"message of {len(raw)} bytes is shorter than the {HEADER_BYTES}-byte header")
    magic, version, encoded, kind_number, round_number, num_examples, body_bytes, name = _HEADER.unpack_from(
        raw
    )
    if magic != MAGIC:
        raise WireError(
            f"message starts with {magic!r}, expected {MAGIC!r}: the peer speaks another protocol"
        )
    if version != VERSION:
        raise WireError(f"message has version {version}, expected {VERSION}: update the older side")
    kind = _known(Kind, kind_number)
    encoding = _known(Encoding, encoded)
    if body_bytes != len(raw) - HEADER_BYTES:
        raise WireError(
            f"{kind.name} announces a body of {body_bytes} bytes, {len(raw) - HEADER_BYTES} bytes follow"
        )
    if not _may_be(kind, encoding):
        raise WireError(f"{kind.name} may not be {encoding.name}")
    if encoding is Encoding.FLOAT32:
        _check_floats(kind, body_bytes, expected_floats)
    try:
        client_id = name.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise WireError(f"{kind.name}: client id is not UTF-8 ({error.reason})") from error
    plain = encoding is Encoding.FLOAT32
    return Message(
        kind=kind,
        round=round_number,
        client_id=client_id,
        num_examples=num_examples,
        encoding=encoding,
        body=np.frombuffer(raw, dtype=_FLOAT32, offset=HEADER_BYTES) if plain and body_bytes else _EMPTY,
        payload=_NOTHING if plain else np.frombuffer(raw, dtype=np.uint8, offset=HEADER_BYTES),
    )


_Number = TypeVar("_Number", bound=IntEnum)


def _known(numbers: type[_Number], value: int) -> _Number:
    try:
        return numbers(value)
    except ValueError:
        known = ", ".join(f"{n.value} {n.name}" for n in numbers)
        raise WireError(f"message has {numbers.__name__.lower()} {value}, expected one of {known}") from None


def _may_be(kind: Kind, encoding: Encoding) -> bool:
    if kind >= Kind.ADVERTISE:
        return encoding is Encoding.OPAQUE
    return encoding is Encoding.FLOAT32 or (kind is Kind.UPDATE and encoding is not Encoding.OPAQUE)


def _check_floats(kind: Kind, body_bytes: int, expected: int | None) -> None:
    carries_model = kind in (Kind.MODEL, Kind.UPDATE)
    floats, rest = divmod(body_bytes, _FLOAT32.itemsize)
    if rest or (carries_model and expected not in (None, floats)) or (body_bytes and not carries_model):
        wanted = f"{expected} floats" if carries_model and expected is not None else "whole floats"
        raise WireError(
            f"{kind.name} has a body of {body_bytes} bytes, expected {wanted if carries_model else 'none'}"
        )
