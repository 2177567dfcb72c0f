"""A pcapng file that others recorded, checked before anything is made of it."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path

from scapy.error import Scapy_Exception
from scapy.packet import Packet
from scapy.utils import PcapNgReader

from ztprobe.documents.files import open_file
from ztprobe.documents.problem import DocumentError

__all__ = ("MOST_PACKETS", "is_capture", "read_capture")

MOST_PACKETS = 100_000
_SECTION, _INTERFACE, _ENHANCED = 0x0A0D0D0A, 1, 6
_MAGIC = b"\x0a\x0d\x0d\x0a"
_OLD_MAGICS = (b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1")
_ORDERS = {0x1A2B3C4D: "<", 0x4D3C2B1A: ">"}
# Link types whose packets hold IP where scapy finds it: Ethernet, raw IP, loopback, Linux cooked.
_LINK_TYPES = {1, 12, 14, 101, 108, 113, 228, 229, 276}
_MOST_BLOCK_BYTES = 16 << 20


def is_capture(path: Path) -> bool:
    """Whether it is a file and not a run directory."""
    return path.is_file()


def read_capture(path: Path) -> Iterator[Packet]:
    """Its packets, at most `MOST_PACKETS` of them.

    :raises DocumentError: it is no pcapng file, is cut off, or holds packets of links that are not read.
    """
    _check(path)
    logging.getLogger("scapy").setLevel(logging.ERROR)  # what it warns of is refused or said here
    try:
        with PcapNgReader(str(path)) as reader:
            for number, packet in enumerate(reader):
                if number == MOST_PACKETS:
                    return
                yield packet
    except (Scapy_Exception, struct.error, OSError, ValueError) as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        raise DocumentError(f"is damaged: {first[:120]}") from error


def _check(path: Path) -> None:
    """Its blocks from the first to the last; a reader would end at one that is cut off, and say nothing."""
    with open_file(path) as stream:
        size = path.stat().st_size
        head = stream.read(12)
        if head[:4] in _OLD_MAGICS:
            raise DocumentError("is a pcap file of the older format; `editcap -F pcapng` converts it")
        if head[:4] != _MAGIC or len(head) < 12:
            raise DocumentError("is no pcapng file")
        order, at, packets = "<", 0, 0
        while at < size:
            stream.seek(at)
            head = stream.read(12)
            if head[:4] == _MAGIC and len(head) == 12:
                order = _ORDERS.get(struct.unpack("<I", head[8:12])[0], "<")
            if len(head) < 12:
                raise DocumentError(f"is cut off: its last block begins at byte {at} of {size}")
            kind, length = struct.unpack(f"{order}II", head[:8])
            if length < 12 or length % 4 or length > _MOST_BLOCK_BYTES:
                raise DocumentError(f"is damaged: the block at byte {at} has {length} bytes")
            if at + length > size:
                raise DocumentError(
                    f"is cut off: the block at byte {at} has {length} bytes, {size - at} are there"
                )
            if kind == _INTERFACE:
                link = struct.unpack(f"{order}H", head[8:10])[0]
                if link not in _LINK_TYPES:
                    raise DocumentError(
                        f"holds packets of link type {link}; Ethernet (1), raw IP (101) and Linux cooked "
                        "(113, 276) are read"
                    )
            packets += kind == _ENHANCED
            at += length
        if not packets:
            raise DocumentError("holds no packets")
