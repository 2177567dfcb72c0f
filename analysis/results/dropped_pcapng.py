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

from analysis.results.dropped import DroppedPacket
from ztprobe.errors import RunDirError
from ztprobe.printable import printable

__all__ = ("write_pcapng",)

_DIRECTIONS = {"rx": 1, "tx": 2}  # of an enhanced packet block's flags


def write_pcapng(packets: Iterable[DroppedPacket], path: Path) -> None:
    """Write them to a file that is not there yet; packets whose head is unknown are left out.

    :raises ztprobe.errors.RunDirError: no packet's head is known.
    """
    packets = [one for one in packets if one.head]
    if not packets:
        raise RunDirError("no dropped packet's bytes are known, so there is nothing to write as pcapng")
    with PcapNgWriter(str(path)) as writer:
        for one in packets:
            writer.write(_packet(one))


def _packet(one: DroppedPacket) -> Packet:
    layers = IPv6 if one.head[0] >> 4 == 6 else IP
    packet = layers(one.head)
    # What its IP header says of its length: for IPv6, of what follows the header.
    whole = 40 + packet.plen if layers is IPv6 else packet.len
    packet.wirelen = max(whole, len(one.head))
    packet.time = one.time_unix_ns / 1e9
    packet.sniffed_on = one.pod
    packet.direction = _DIRECTIONS.get(one.direction, 0)
    where = f" in {one.location}" if one.location else ""
    comments = [f"{one.reason}{where}: {one.source} -> {one.target}", *one.explanation]
    packet.comments = [printable(comment).encode() for comment in comments]
    return packet
