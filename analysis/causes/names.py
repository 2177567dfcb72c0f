"""Answers of name servers, with the addresses in them (RFC 1035, as far as the kept bytes go)."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analysis.evidence.values import DnsMessage
from ztprobe.events.kinds import Direction

__all__ = ("Answer", "answers_of")

_A, _AAAA = 1, 28
_HEADER_BYTES = 12


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response that a pod received."""

    pod: str
    answered_ns: int
    name: str
    rcode: int  # 0: no error, 3: no such name
    addresses: tuple[str, ...]


def answers_of(messages: Sequence[DnsMessage]) -> Iterator[Answer]:
    """By time; what is no DNS response is left out."""
    for message in messages:
        data = message.data
        if message.direction != Direction.RX or message.local_port == 53 or len(data) < _HEADER_BYTES + 5:
            continue
        _, flags, questions, records = struct.unpack_from(">HHHH", data)
        if not flags >> 15 or questions != 1:
            continue
        try:
            name, at = _name(data, _HEADER_BYTES)
            addresses = tuple(_addresses(data, at + 4, records))
        except (IndexError, struct.error, ValueError):
            continue
        yield Answer(
            pod=message.pod, answered_ns=message.ts_ns, name=name, rcode=flags & 15, addresses=addresses
        )


def _name(data: bytes, at: int) -> tuple[str, int]:
    """A name and where it ends; a compressed one ends at its pointer, which is not followed."""
    labels: list[str] = []
    while length := data[at]:
        if length & 0xC0:
            return ".".join(labels), at + 2
        labels.append(data[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels), at + 1


def _addresses(data: bytes, at: int, records: int) -> Iterator[str]:
    for _ in range(records):
        if at >= len(data):  # beyond what was kept
            return
        _, at = _name(data, at)
        kind, _, _, length = struct.unpack_from(">HHIH", data, at)
        value = data[at + 10 : at + 10 + length]
        if kind in (_A, _AAAA) and len(value) == length:
            yield str(ipaddress.ip_address(value))
        at += 10 + length
