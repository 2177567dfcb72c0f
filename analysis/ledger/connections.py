"""Which connections carried the experiment, and which loopback connection belongs to which wire connection.

A *path* is what one client's messages travel: client application, its sidecar (if
there is one), the wire, the server's sidecar, the server application. With
sidecars every application's peer is 127.0.0.1, so the pieces are joined by what the
proxies' threads did: a read on one side and the next write on the other, counted
by the probes; the partner with the highest count is the right one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.evidence.values import Burst, Drop, Endpoint, KernelEvents, LoKey, Packet, Wire
from ztprobe.events.kinds import Direction, Hook

__all__ = ("Path", "Topology", "topology_of")

# Control traffic and handshakes stay below; most models are larger by orders of magnitude.
_MESSAGE_MIN_BYTES = 8 << 10
_MESSAGE_MIN_SHARE = 0.25


@dataclass(frozen=True)
class Path:
    """One wire connection between a client and the server, with its loopback partners."""

    client: str
    wire: Wire
    client_lo: LoKey | None
    server_lo: LoKey | None


@dataclass
class Topology:
    """Who is who, by which ways they speak, and the events to look up."""

    server: str
    clients: tuple[str, ...]
    addresses: dict[str, str]  # pod -> address
    paths: list[Path]
    events: KernelEvents

    def bursts(self, pod: str, hook: Hook, key: Wire | LoKey, direction: Direction) -> Sequence[Burst]:
        """A connection's bursts at a hook, control traffic among them."""
        return self.events.bursts.get((pod, hook, key), {}).get(direction, ())

    def messages(self, pod: str, hook: Hook, key: Wire | LoKey, direction: Direction) -> list[Burst]:
        """Bursts of a connection at a hook that are whole messages, not control traffic."""
        found = self.bursts(pod, hook, key, direction)
        largest_bytes = max((b.bytes for b in found), default=0)
        limit_bytes = max(_MESSAGE_MIN_BYTES, _MESSAGE_MIN_SHARE * largest_bytes)
        return [b for b in found if b.bytes >= limit_bytes]

    def packets(self, path: Path) -> Sequence[Packet]:
        """A path's set-up packets and first payloads, at the client's interface."""
        return self.events.packets.get((path.client, path.wire), ())

    def refused(self, sender: str, wire: Wire) -> list[Drop]:
        """What a full queue at a sender, or on the node behind it, dropped of a wire connection."""
        return [
            drop
            for place in (sender, "node")
            for drop in self.events.drops.get(place, ())
            if drop.reason == "QDISC_DROP"
            and drop.wire == wire
            and drop.seq
            and drop.source.address == self.addresses[sender]
        ]

    def opened_ns(self, lo: LoKey | None) -> int | None:
        """When a loopback connection was opened, by its first SYN."""
        packets = self.events.packets.get((lo.pod, lo), ()) if lo is not None else ()
        return next((p.ts_ns for p in packets if p.opens), None)


def topology_of(pods: Sequence[dict[str, Any]], events: KernelEvents, server_port: int) -> Topology:
    """The ways between the clients and the server.

    :param pods: run.json's ``pods``: name, address, labels.
    """
    server = next(p["name"] for p in pods if p["labels"].get("app") == "fl-server")
    clients = tuple(p["name"] for p in pods if p["labels"].get("app") == "fl-client")
    addresses = {p["name"]: p["address"] for p in pods}
    owner = {addresses[name]: name for name in clients}
    end = Endpoint(addresses[server], server_port)
    wires = [w for w in events.wires if end in (w.one, w.other) and w.peer_of(end.address).address in owner]
    sidecars = _has_sidecars(events, {server, *clients})
    paths = []
    for wire in sorted(wires, key=lambda w: (clients.index(owner[w.peer_of(end.address).address]), w)):
        client = owner[wire.peer_of(end.address).address]
        client_lo, server_lo = events.partners.get((client, wire)), events.partners.get((server, wire))
        if sidecars:
            # A path without loopback connections has lost them, and is no direct way.
            client_lo, server_lo = client_lo or LoKey(client, 0, 0), server_lo or LoKey(server, 0, 0)
        paths.append(Path(client, wire, client_lo, server_lo))
    return Topology(server, clients, addresses, paths, events)


def _has_sidecars(events: KernelEvents, pods: Collection[str]) -> bool:
    """Whether messages went over a pod's loopback: then there are proxies on the way."""
    return bool(events.partners) or any(
        pod in pods and hook == Hook.LO and any(burst.bytes >= _MESSAGE_MIN_BYTES for burst in found)
        for (pod, hook, _), directions in events.bursts.items()
        for found in directions.values()
    )
