"""The connections that a run recorded, as ``ztprobe policy simulate`` asks about them.

The one place that knows how a run keeps them: a SYN that left or reached a pod's interface opens a
TCP connection (repeated, it is the same one), the first datagram to port 53 a DNS exchange. A SYN and
ACK, or a datagram back, is the answer.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from typing import Any

from ztprobe.events.tables import Direction, PacketKind
from ztprobe.policy.model import Pod
from ztprobe.policy.simulating import Recorded
from ztprobe.rundir.store import Run

__all__ = ("recorded_connections", "recorded_pods")

_SYN, _ACK = 2, 16
_LOOPBACK = 127  # lowest byte of an address in network order, read little-endian


def recorded_pods(run: Run) -> list[Pod]:
    """The run's pods, as policies see them."""
    return [
        Pod(
            name=pod["name"],
            namespace=pod["namespace"],
            labels=pod["labels"],
            addresses=(ipaddress.ip_address(pod["address"]),),
            named_ports=None,
        )
        for pod in run.meta["pods"]
    ]


def recorded_connections(run: Run) -> list[Recorded]:
    """What was connected to what, and how often; not what stayed within a pod."""
    names = {str(pod.addresses[0]): pod.id for pod in recorded_pods(run)}
    opened: dict[tuple[str, str, str, int], dict[tuple[int, int, int], bool]] = defaultdict(dict)
    packets = run.events["packets"]
    row: Any
    for row in packets[packets["kind"].isin([PacketKind.SETUP, PacketKind.DNS])].itertuples():
        if row.laddr & 0xFF == _LOOPBACK:
            continue
        sent = row.dir == Direction.TX
        client, server = (
            ((row.laddr, row.lport), (row.raddr, row.rport))
            if sent == _from_client(row)
            else ((row.raddr, row.rport), (row.laddr, row.lport))
        )
        if row.kind == PacketKind.SETUP and not row.flags & _SYN:
            continue
        ends = [_text(client[0]), _text(server[0])]
        protocol = "UDP" if row.kind == PacketKind.DNS and not row.flags else "TCP"
        key = (names.get(ends[0], ends[0]), names.get(ends[1], ends[1]), protocol, int(server[1]))
        connection = (client[0], client[1], server[0])
        opened[key][connection] = opened[key].get(connection, False) or not _from_client(row)
    return [
        Recorded(
            source=source,
            target=target,
            protocol=protocol,
            port=port,
            answered=sum(connections.values()),
            unanswered=len(connections) - sum(connections.values()),
        )
        for (source, target, protocol, port), connections in sorted(opened.items())
    ]


def _from_client(row: Any) -> bool:
    # Whether this packet went from the connection's client to its server.
    if row.kind == PacketKind.SETUP:
        return not row.flags & _ACK
    to_server = row.rport == 53 if row.dir == Direction.TX else row.lport == 53
    return bool(to_server)


def _text(number: int) -> str:
    return str(ipaddress.IPv4Address(int(number).to_bytes(4, "little")))
