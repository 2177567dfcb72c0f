"""Dropped packets as a pcapng file: reason, pods and policy are comments that Wireshark shows.

The kernel's events hold a packet from its IP header on and no more than its first bytes; the file says
so as every capture with a short snapshot length does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet
from scapy.utils import PcapNgWriter

from analysis.results.drops import DroppedPacket
from ztprobe.errors import RunDirError
from ztprobe.events.heads import packet_bytes
from ztprobe.printable import printable

__all__ = ("DropWriter", "is_writable", "write_pcapng")

_DIRECTIONS = {"rx": 1, "tx": 2}  # of an enhanced packet block's flags


def write_pcapng(packets: Iterable[DroppedPacket], path: Path) -> None:
    """Write them to a file that is not there yet; packets whose head is unknown are left out.

    :raises ztprobe.errors.RunDirError: no packet's head is known.
    """
    packets = [one for one in packets if is_writable(one)]
    if not packets:
        raise RunDirError("no dropped packet's bytes are known, so there is nothing to write as pcapng")
    with DropWriter(path) as writer:
        for one in packets:
            writer.write(one)


def is_writable(one: DroppedPacket) -> bool:
    """Whether its bytes are known, and are an IP packet's: the file holds no others."""
    return bool(one.head) and one.head[0] >> 4 in (4, 6) and one.protocol != "arp"


class DropWriter:
    """A pcapng that grows; a context manager that closes it.

    :param path: nothing is there yet, and nobody else can put something there.
    """

    def __init__(self, path: Path) -> None:
        self._writer = PcapNgWriter(str(path))
        self.packets = 0

    def __enter__(self) -> DropWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Everything is in the file. Idempotent."""
        self._writer.close()

    def write(self, one: DroppedPacket) -> None:
        """Add a packet that `is_writable`."""
        self._writer.write(_packet(one))
        self.packets += 1


def _packet(one: DroppedPacket) -> Packet:
    packet = (IPv6 if one.head[0] >> 4 == 6 else IP)(one.head)
    packet.wirelen = packet_bytes(one.head)
    packet.time = one.time_unix_ns / 1e9
    packet.sniffed_on = one.pod
    packet.direction = _DIRECTIONS.get(one.direction, 0)
    where = f" in {one.location}" if one.location else ""
    comments = [f"{one.reason}{where}: {one.source} -> {one.target}", *one.explanation]
    packet.comments = [printable(comment).encode() for comment in comments]
    return packet
