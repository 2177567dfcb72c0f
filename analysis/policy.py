"""Time that a network policy cost: from a flow's first blocked packet to its first that passes.

A drop counts as policy only with the kernel's reason for a packet filter's verdict
(SKB_DROP_REASON_NETFILTER_DROP) and in the node's namespace, where the policy's rules
are; emulated loss has another reason and is never policy.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from analysis.connections import Topology
from analysis.intervals import Segment
from ztprobe.events import Direction, PacketKind, PointKind, address_number

__all__ = ("policy_overlays",)

_REASON = "NETFILTER_DROP"
_NEVER_NS = 1 << 62
_ANSWERS = (PacketKind.SETUP, PacketKind.PAYLOAD, PacketKind.DNS)


def policy_overlays(topology: Topology, meta: dict[str, Any], server_port: int) -> dict[str, list[Segment]]:
    """Client -> stretches during which policy blocked its traffic with a peer that it reached later.

    :param meta: run.json; ``drop_reasons`` names the kernel's reason numbers.
    """
    reasons = {int(number) for number, name in meta.get("drop_reasons", {}).items() if name == _REASON}
    addresses = {address_number(p["address"]): p["name"] for p in meta["pods"]}
    blocked: dict[tuple[str, str, int], list[int]] = defaultdict(list)  # client, peer, peer's port
    for point in topology.points_of("node", PointKind.DROP):
        source, target = addresses.get(point.laddr), addresses.get(point.raddr)
        if point.a not in reasons or source is None or target is None:
            continue
        if source in topology.clients:
            blocked[source, target, point.rport].append(int(point.ts_ns))
        elif target in topology.clients:
            blocked[target, source, point.lport].append(int(point.ts_ns))
    passed: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    answers = [packet for packets in topology.packets.values() for packet in packets]
    for packet in (*answers, *topology.dns_packets):
        if packet.dir == Direction.RX and packet.kind in _ANSWERS:
            passed[packet.pod, addresses.get(packet.raddr, ""), packet.rport].append(int(packet.ts_ns))
    overlays: dict[str, list[Segment]] = defaultdict(list)
    for (client, peer, port), times in blocked.items():
        # What never passes again is nobody's wait, unless it is the way to the server: our own
        # probes knock at doors that stay shut.
        for_good = (peer, port) == (topology.server, server_port)
        ends = sorted(passed.get((client, peer, port), ()))
        end_ns = 0
        for start_ns in sorted(times):
            following = next((t for t in ends if t > start_ns), None)
            if following is None and for_good:
                following = _NEVER_NS
            if start_ns >= end_ns and following is not None:
                end_ns = following
                overlays[client].append(Segment(start_ns, end_ns, "policy_drop"))
    return dict(overlays)
