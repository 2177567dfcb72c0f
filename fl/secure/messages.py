"""The bodies of secure aggregation's messages; everything little-endian, nothing variable but counts.

ADVERTISE  sealing key[32], mask key[32]
KEYS       threshold u32, then per client, sorted by id: id[64], sealing key[32], mask key[32]
SHARES     per other client of KEYS, in its order: sealed (share of the mask key[33], of the seed[33])
INBOX      per client that sent SHARES, but for the receiver: place in KEYS u32, its sealed shares
MASKED     u64[n + 1]
SURVIVORS  place in KEYS u32 of each client whose MASKED is in the sum
UNMASK     per client that sent SHARES: place in KEYS u32, share[33] (of the seed of a survivor,
           of the mask key of any other)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fl.errors import WireError
from fl.secure.keys import KEY_BYTES, SEAL_BYTES
from fl.secure.shamir import SHARE_BYTES
from fl.wire import CLIENT_ID_BYTES, HEADER_BYTES

__all__ = (
    "ADVERTISE_BYTES",
    "SEALED_BYTES",
    "Advert",
    "Roster",
    "numbered",
    "places",
    "records",
    "wire_bytes",
)

ADVERTISE_BYTES = 2 * KEY_BYTES
SEALED_BYTES = 2 * SHARE_BYTES + SEAL_BYTES
_PLACE = struct.Struct("<I")
_ENTRY_BYTES = CLIENT_ID_BYTES + ADVERTISE_BYTES


@dataclass(frozen=True, kw_only=True)
class Advert:
    """A client's public keys."""

    sealing: bytes
    masking: bytes

    @classmethod
    def decode(cls, body: bytes) -> Advert:
        """:raises WireError: not two keys."""
        if len(body) != ADVERTISE_BYTES:
            raise WireError(f"ADVERTISE has {len(body)} bytes, expected {ADVERTISE_BYTES}")
        return cls(sealing=body[:KEY_BYTES], masking=body[KEY_BYTES:])

    def encode(self) -> bytes:
        """The body of ADVERTISE."""
        return self.sealing + self.masking


@dataclass(frozen=True, kw_only=True)
class Roster:
    """Who takes part in a round: everybody's keys, in the order that gives the clients their places."""

    threshold: int
    clients: tuple[str, ...]
    adverts: tuple[Advert, ...]

    def encode(self) -> bytes:
        """The body of KEYS."""
        entries = (
            client.encode().ljust(CLIENT_ID_BYTES, b"\0") + advert.encode()
            for client, advert in zip(self.clients, self.adverts, strict=True)
        )
        return _PLACE.pack(self.threshold) + b"".join(entries)

    @classmethod
    def decode(cls, body: bytes) -> Roster:
        """:raises WireError: not whole entries, not in order, or a threshold that cannot be."""
        head = body[: _PLACE.size]
        entries = records(body[_PLACE.size :], _ENTRY_BYTES, "KEYS")
        clients = tuple(entry[:CLIENT_ID_BYTES].rstrip(b"\0").decode("utf-8", "replace") for entry in entries)
        if len(head) < _PLACE.size or not 1 < (threshold := _PLACE.unpack(head)[0]) <= len(clients):
            raise WireError(f"KEYS of {len(clients)} clients has an impossible threshold")
        if list(clients) != sorted(set(clients)):
            raise WireError("KEYS does not name each client once, in order")
        adverts = tuple(Advert.decode(entry[CLIENT_ID_BYTES:]) for entry in entries)
        return cls(threshold=threshold, clients=clients, adverts=adverts)


def records(body: bytes, size: int, what: str) -> list[bytes]:
    """The body in pieces of one size. :raises WireError: it does not consist of whole ones."""
    if len(body) % size:
        raise WireError(f"{what} has {len(body)} bytes, expected a multiple of {size}")
    return [body[start : start + size] for start in range(0, len(body), size)]


def numbered(body: bytes, size: int, what: str, roster: int) -> dict[int, bytes]:
    """Pieces by the place before each. :raises WireError: a place is none, or there twice."""
    found: dict[int, bytes] = {}
    for record in records(body, _PLACE.size + size, what):
        place = _PLACE.unpack_from(record)[0]
        if place >= roster or place in found:
            raise WireError(f"{what} names place {place} of {roster}, or names it twice")
        found[place] = record[_PLACE.size :]
    return found


def places(pieces: Mapping[int, bytes] | Sequence[int] | Iterable[int]) -> bytes:
    """The reverse: each place, with its piece where there is one."""
    if isinstance(pieces, Mapping):
        return b"".join(_PLACE.pack(place) + piece for place, piece in pieces.items())
    return b"".join(_PLACE.pack(place) for place in pieces)


def wire_bytes(*, clients: int, size: int) -> dict[str, int]:
    """Length of each message, header and body, of a round of `clients` in which nobody drops out."""
    bodies = {
        "ADVERTISE": ADVERTISE_BYTES,
        "KEYS": _PLACE.size + clients * _ENTRY_BYTES,
        "SHARES": (clients - 1) * SEALED_BYTES,
        "INBOX": (clients - 1) * (_PLACE.size + SEALED_BYTES),
        "MASKED": 8 * (size + 1),
        "SURVIVORS": clients * _PLACE.size,
        "UNMASK": clients * (_PLACE.size + SHARE_BYTES),
    }
    return {name: HEADER_BYTES + length for name, length in bodies.items()}
