"""Every TCP connection that a pod tried to open, on the wire or on its loopback, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.evidence.values import ACK, FIN, RST, Endpoint, KernelEvents, LoKey, Packet, Wire
from ztprobe.events.kinds import Direction

__all__ = ("Attempt", "attempts_of")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One connection as the pod that opens it sees it; times in CLOCK_MONOTONIC nanoseconds.

    On loopback, both ends are the same pod's.
    """

    pod: str
    target: str  # pod, or an address that is no pod's
    port: int
    key: Wire | LoKey
    syns_ns: tuple[int, ...]
    answered_ns: int | None  # SYN and ACK
    refused_ns: int | None  # RST in place of the answer
    arrived_ns: int | None  # its SYN at the target's own interface; None: not seen there
    refused_by_target: bool  # the RST left the target's own interface
    packets: tuple[Packet, ...]  # at the opening pod; directions as it sees them

    @property
    def is_local(self) -> bool:
        """Whether it stays on the pod's loopback."""
        return isinstance(self.key, LoKey)

    @property
    def payloads(self) -> list[Packet]:
        """The first payloads in both directions."""
        return [packet for packet in self.packets if packet.kind == "payload"]

    def sent(self) -> list[Packet]:
        """The opening side's first payloads."""
        return [packet for packet in self.payloads if packet.direction == Direction.TX]

    def received(self) -> list[Packet]:
        """The other side's."""
        return [packet for packet in self.payloads if packet.direction == Direction.RX]

    def end(self) -> Packet | None:
        """The first FIN or RST after it was established."""
        return next(
            (
                packet
                for packet in self.packets
                if packet.kind == "setup"
                and packet.tcp_flags & (FIN | RST)
                and self.answered_ns is not None
                and packet.ts_ns > self.answered_ns
            ),
            None,
        )


def attempts_of(
    events: KernelEvents, addresses: Mapping[str, str], names: Mapping[str, str]
) -> list[Attempt]:
    """All of them, by the time of their first SYN."""
    found: list[Attempt] = []
    for (pod, key), packets in events.packets.items():
        if isinstance(key, LoKey):
            found += _on_loopback(pod, key, packets)
        elif pod in addresses:
            found += _on_wire(events, addresses, names, pod, key, packets)
    return sorted(found, key=lambda one: one.syns_ns[0])


def _on_loopback(pod: str, key: LoKey, packets: Sequence[Packet]) -> Iterator[Attempt]:
    # There, the local end is the one with the lower port, mostly the listener: turn round what it sees.
    syn = next((p for p in packets if p.opens and not p.tcp_flags & ACK), None)
    if syn is None:
        return
    by_listener = syn.direction == Direction.RX
    turned = [p._replace(direction=_turned(p.direction)) for p in packets] if by_listener else [*packets]
    port = key.low_port if by_listener else key.high_port
    yield _attempt(pod, pod, port, key, turned, arrived_ns=syn.ts_ns, refused_by_target=True)


def _turned(direction: Direction) -> Direction:
    return Direction.TX if direction == Direction.RX else Direction.RX


def _on_wire(
    events: KernelEvents,
    addresses: Mapping[str, str],
    names: Mapping[str, str],
    pod: str,
    key: Wire,
    packets: Sequence[Packet],
) -> Iterator[Attempt]:
    if not any(p.opens and not p.tcp_flags & ACK and p.direction == Direction.TX for p in packets):
        return
    peer: Endpoint = key.peer_of(addresses[pod])
    target = names.get(peer.address, peer.address)
    there = events.packets.get((target, key), ())
    arrived = next((p.ts_ns for p in there if p.opens and p.direction == Direction.RX), None)
    refused = any(p.tcp_flags & RST and p.direction == Direction.TX for p in there)
    yield _attempt(pod, target, peer.port, key, packets, arrived_ns=arrived, refused_by_target=refused)


def _attempt(
    pod: str,
    target: str,
    port: int,
    key: Wire | LoKey,
    packets: Sequence[Packet],
    *,
    arrived_ns: int | None,
    refused_by_target: bool,
) -> Attempt:
    syns = [p.ts_ns for p in packets if p.opens and not p.tcp_flags & ACK and p.direction == Direction.TX]
    back = [p for p in packets if p.kind == "setup" and p.direction == Direction.RX]
    answered = next((p.ts_ns for p in back if p.opens and p.tcp_flags & ACK), None)
    refused = next((p.ts_ns for p in back if p.tcp_flags & RST), None)
    return Attempt(
        pod=pod,
        target=target,
        port=port,
        key=key,
        syns_ns=tuple(syns),
        answered_ns=answered,
        refused_ns=refused if answered is None else None,
        arrived_ns=arrived_ns,
        refused_by_target=refused_by_target,
        packets=tuple(packets),
    )
