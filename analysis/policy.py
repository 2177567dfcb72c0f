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
from ztprobe.events import PacketKind, PointKind, address_number

__all__ = ("policy_overlays",)

_REASON = "NETFILTER_DROP"


def policy_overlays(topology: Topology, meta: dict[str, Any]) -> dict[str, list[Segment]]:
    """Client -> stretches during which policy blocked its traffic with the server.

    :param meta: run.json; ``drop_reasons`` names the kernel's reason numbers.
    """
    reasons = {int(number) for number, name in meta.get("drop_reasons", {}).items() if name == _REASON}
    addresses = {address_number(p["address"]): p["name"] for p in meta["pods"]}
    blocked: dict[tuple[str, int], list[int]] = defaultdict(list)
    for point in topology.points_of("node", PointKind.DROP, None, None):
        source, target = addresses.get(point.laddr), addresses.get(point.raddr)
        if point.a not in reasons or source is None or target is None:
            continue
        if source in topology.clients:
            blocked[source, point.rport].append(int(point.ts_ns))
        elif target in topology.clients:
            blocked[target, point.lport].append(int(point.ts_ns))
    passed: dict[tuple[str, int], list[int]] = defaultdict(list)
    for packets in topology.packets.values():
        for packet in packets:
            if packet.dir == 1 and packet.kind in (PacketKind.SETUP, PacketKind.PAYLOAD):
                passed[packet.pod, packet.rport].append(int(packet.ts_ns))
    for packet in topology.dns_packets:
        if packet.dir == 1:
            passed[packet.pod, packet.rport].append(int(packet.ts_ns))
    overlays: dict[str, list[Segment]] = defaultdict(list)
    for (client, port), times in blocked.items():
        answers = sorted(passed.get((client, port), ()))
        end_ns = 0
        for start_ns in sorted(times):
            if start_ns < end_ns:
                continue
            end_ns = next((t for t in answers if t > start_ns), max(times))
            overlays[client].append(Segment(start_ns, end_ns, "policy_drop"))
    return dict(overlays)
