"""Which connections carried the experiment, and which loopback connection belongs to which wire connection.

A *path* is what one client's messages travel: client application, its sidecar (if
there is one), the wire, the server's sidecar, the server application. With
sidecars every application's peer is 127.0.0.1, so the pieces are joined by what the
proxies' threads did: a read on one side and the next write on the other, counted
by the probes; the partner with the highest count is the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.evidence import Burst, Drop, Endpoint, KernelEvents, LoKey, Packet, Wire
from analysis.ledger.conditions import Conditions
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
    conditions: Conditions = field(default_factory=Conditions)  # of the emulated path

    def expect_sidecars(self) -> None:
        """Both ends have one: a path without loopback connections has lost them, and is no direct way."""
        self.paths = [
            Path(
                path.client,
                path.wire,
                path.client_lo or LoKey(path.client, 0, 0),
                path.server_lo or LoKey(self.server, 0, 0),
            )
            for path in self.paths
        ]

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
    paths = []
    for wire in sorted(wires, key=lambda w: (clients.index(owner[w.peer_of(end.address).address]), w)):
        client = owner[wire.peer_of(end.address).address]
        lo, server_lo = events.partners.get((client, wire)), events.partners.get((server, wire))
        paths.append(Path(client, wire, lo, server_lo))
    return Topology(server, clients, addresses, paths, events)
