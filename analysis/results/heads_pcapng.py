"""The packet heads that a run recorded, as a pcapng file that Wireshark opens.

Recorded are each connection's set-up, end and first payloads, and DNS messages, as the pods' interfaces saw
them: ports, sequence numbers, flags, lengths and the first bytes of the payload. The rest of an IP header
was not, and stands at its default here; a comment in the file says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter

from ztprobe.errors import RunDirError
from ztprobe.printable import printable
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run

__all__ = ("heads_pcapng",)

_NOTE = "addresses, ports, sequence numbers, flags, lengths and data were recorded; all else is a default"
_HEADERS_BYTES = {"tcp": 40, "udp": 28}
_DIRECTIONS = {"rx": 1, "tx": 2}  # of an enhanced packet block's flags


def heads_pcapng(run: Run) -> bytes:
    """The file's content, packets by time.

    :raises ztprobe.errors.RunDirError: the run recorded no packet's head.
    """
    clock = Clock.of_run(run.meta)
    packets = sorted([*_tcp(run), *_dns(run)], key=lambda one: one[0])
    if not packets:
        raise RunDirError(f"{run.path}: recorded no packet's head, so there is nothing to write as pcapng")
    with tempfile.TemporaryDirectory(prefix="ztprobe-") as directory:
        file = Path(directory, "heads.pcapng")
        with PcapNgWriter(str(file)) as writer:
            for number, (ts_ns, packet) in enumerate(packets):
                packet.time = clock.unix_ns(ts_ns) / 1e9
                if number == 0:
                    packet.comments = [_NOTE.encode(), *(packet.comments or ())]
                writer.write(packet)
        return file.read_bytes()


def _tcp(run: Run) -> Iterator[tuple[int, Packet]]:
    ends = {row.connection: row for row in _rows(run.events["connections"])}
    for row in _rows(run.events["packets"]):
        connection = ends.get(row.connection)
        if connection is None or connection.family != "ipv4":
            continue
        source, target = (
            (connection.local, connection.local_port),
            (connection.remote, connection.remote_port),
        )
        if row.direction == "rx":
            source, target = target, source
        packet = IP(src=source[0], dst=target[0]) / TCP(
            sport=source[1], dport=target[1], seq=row.seq, ack=row.ack, flags=row.tcp_flags
        )
        yield row.ts_ns, _framed(packet, row, "tcp")


def _dns(run: Run) -> Iterator[tuple[int, Packet]]:
    for row in _rows(run.events["dns"]):
        source, target = (row.local, row.local_port), (row.remote, row.remote_port)
        if row.direction == "rx":
            source, target = target, source
        packet = IP(src=source[0], dst=target[0]) / UDP(sport=source[1], dport=target[1])
        yield row.ts_ns, _framed(packet, row, "udp")


def _framed(packet: Packet, row: Any, protocol: str) -> Packet:
    """With what was recorded of the payload, and the length that it had."""
    whole_bytes = _HEADERS_BYTES[protocol] + row.payload_bytes
    packet[IP].len = min(whole_bytes, 65535)
    if protocol == "udp":
        packet[UDP].len = min(8 + row.payload_bytes, 65535)
    packet = IP(bytes(packet / Raw(row.data))) if row.data else packet
    packet.wirelen = max(whole_bytes, len(packet))
    packet.sniffed_on = row.pod
    packet.direction = _DIRECTIONS[row.direction]
    packet.comments = [printable(f"seen at {row.pod}").encode()]
    return packet


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    rows: Iterator[Any] = table.itertuples(index=False)
    return rows
