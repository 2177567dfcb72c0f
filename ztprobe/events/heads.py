"""Reading packet headers out of an event's bytes: addresses as text, and whose a dropped packet was."""

from __future__ import annotations

import functools
import ipaddress
import struct
from typing import NamedTuple

__all__ = ("Head", "address_bytes", "address_text", "packet_bytes", "read_head")

_MAPPED = b"\0" * 10 + b"\xff\xff"  # an IPv4 address in IPv6's form (RFC 4291, 2.5.5.2)
_TCP, _UDP = 6, 17
_PROTOCOLS = {1: "icmp", _TCP: "tcp", _UDP: "udp", 58: "icmpv6"}
_IPV4_BYTES, _IPV6_BYTES, _TCP_BYTES, _UDP_BYTES = 20, 40, 20, 8


class Head(NamedTuple):
    """What the headers of a packet say; ports, flags and sequence number are 0 where it has none."""

    protocol: str
    source: str
    target: str
    source_port: int
    target_port: int
    tcp_flags: int
    seq: int
    payload_bytes: int


@functools.lru_cache(maxsize=4096)
def address_text(raw: bytes) -> str:
    """An address of 4 bytes, or of 16 (IPv4 mapped into IPv6 among them), as people write it."""
    if raw[:12] == _MAPPED:
        raw = raw[12:]
    return str(ipaddress.ip_address(raw))


def address_bytes(text: str) -> bytes:
    """The 16 bytes of an address in text.

    :raises ValueError: it is no IP address.
    """
    raw = ipaddress.ip_address(text).packed
    return _MAPPED + raw if len(raw) == 4 else raw


def packet_bytes(head: bytes) -> int:
    """How long an IP packet is by its header; what is no IP packet is as long as what there is of it."""
    version, at = (head[0] >> 4, 2) if head else (0, 0)
    if version == 6:
        at = 4
    if version not in (4, 6) or len(head) < _IPV4_BYTES:
        return len(head)
    said: int = struct.unpack_from(">H", head, at)[0]
    return max(len(head), said + (_IPV6_BYTES if version == 6 else 0))


def read_head(head: bytes) -> Head:
    """A packet from its IP header on, cut short anywhere; what is not there is empty or 0."""
    version = head[0] >> 4 if head else 0
    if version == 4 and len(head) >= _IPV4_BYTES:
        at, number, total = (head[0] & 15) * 4, head[9], struct.unpack_from(">H", head, 2)[0]
        source, target = head[12:16], head[16:20]
    elif version == 6 and len(head) >= _IPV6_BYTES:
        at, number, total = _IPV6_BYTES, head[6], _IPV6_BYTES + struct.unpack_from(">H", head, 4)[0]
        source, target = head[8:24], head[24:40]
    else:
        return Head("", "", "", 0, 0, 0, 0, 0)
    ports, flags, seq, header_bytes = (0, 0), 0, 0, _UDP_BYTES  # ICMP's header is as long as UDP's
    if number in (_TCP, _UDP) and len(head) >= at + 4:
        ports = struct.unpack_from(">HH", head, at)
    if number == _TCP and len(head) >= at + _TCP_BYTES:
        seq = struct.unpack_from(">I", head, at + 4)[0]
        header_bytes, flags = (head[at + 12] >> 4) * 4, head[at + 13]
    return Head(
        _PROTOCOLS.get(number, str(number)),
        address_text(source),
        address_text(target),
        *ports,
        flags,
        seq,
        max(0, total - at - header_bytes),
    )
