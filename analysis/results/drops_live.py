"""Drops as they happen: the probes' records as packets with names and reasons, and which lines to print when.

A packet of a kind that has been quiet is told at once, and more of its kind together at the end of a
window: a short one, so that a burst is told whole while it is news, and one of a second once a kind goes
on and on. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.results.drop_explanations import DropExplainer, noise_of
from analysis.results.drops import DropBurst, DroppedPacket, flag_letters
from ztprobe.events.heads import address_text, read_head
from ztprobe.events.kinds import Direction

__all__ = ("Deployment", "DropDecoder", "DropLines", "LiveDrop")

_FIRST_WINDOW_NS, _FIRST_WINDOWS = 120_000_000, 3
_LATER_WINDOW_NS = 1_000_000_000
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_ETHERTYPES = {0x0806: "arp", 0x86DD: "ipv6", 0x0800: "ip"}
_DIRECTIONS = (Direction.TX, Direction.RX)
_MOST_KINDS = 65_536


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Pods that belong together, and what was in force among them."""

    name: str
    places: Mapping[int, str]  # network namespace inode -> pod, or node
    names: Mapping[str, str]  # address -> pod
    explainers: Sequence[tuple[int, DropExplainer]]  # since when (CLOCK_MONOTONIC ns), the oldest first

    def explainer_at(self, ts_ns: int) -> DropExplainer:
        """The one of the objects that were in force then."""
        at = bisect_right([since for since, _ in self.explainers], ts_ns)
        return self.explainers[max(0, at - 1)][1]


@dataclass(frozen=True, kw_only=True)
class LiveDrop:
    """Packets of one kind that were dropped: one that is known whole, or many that were counted."""

    deployment: str
    kind: bytes
    packet: DroppedPacket  # of many, the last one that was known whole
    is_counted: bool  # they are no more than counted
    packets: int
    payload_bytes: int
    last_ns: int


class DropDecoder:
    """Records and counts of ``ebpf/drops.h`` as `LiveDrop`.

    :param kind_type: numpy type of ``struct drop_kind``.
    :param reasons: the kernel's numbers for reasons.
    :param symbol: an address in the kernel -> its function's name.
    :param unix_offset_ns: wall clock less CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        kind_type: np.dtype[np.void],
        reasons: Mapping[int, str],
        symbol: Callable[[int], str],
        unix_offset_ns: int,
    ) -> None:
        self._kind_type = kind_type
        self._reasons = reasons
        self._symbol = symbol
        self._offset_ns = unix_offset_ns
        self._deployments: dict[int, Deployment] = {}
        self._kinds: dict[bytes, DroppedPacket] = {}

    def know(self, deployments: Iterable[Deployment]) -> None:
        """These are watched from now on; those of before are still told by their names."""
        self._kinds.clear()
        self._deployments |= {inode: one for one in deployments for inode in one.places}

    def records(self, rows: np.ndarray) -> Iterable[LiveDrop]:
        """Packets that are known whole; those of namespaces that nobody knows are left out."""
        for row in rows:
            kind, ts_ns, length = bytes(row["kind"]), int(row["ts_ns"]), int(row["head_bytes"])
            packet = self._packet(kind, ts_ns)
            if packet is None:
                continue
            payload_bytes = int(row["payload_bytes"])
            packet = replace(
                packet,
                ts_ns=ts_ns,
                time_unix_ns=ts_ns + self._offset_ns,
                source_port=int(row["source_port"]),
                payload_bytes=payload_bytes,
                tcp_flags=flag_letters(read_head(bytes(row["head"])[:length]).tcp_flags) or packet.tcp_flags,
                noise=self._noise(kind, packet, payload_bytes),
                head=bytes(row["head"])[:length],
            )
            self._kinds[kind] = packet
            yield LiveDrop(
                deployment=self._deployment(kind),
                kind=kind,
                packet=packet,
                is_counted=False,
                packets=1,
                payload_bytes=payload_bytes,
                last_ns=ts_ns,
            )

    def counted(self, kind: bytes, packets: int, payload_bytes: int, last_ns: int) -> LiveDrop | None:
        """Packets that the kernel counted; None: of a namespace that nobody knows."""
        packet = self._packet(kind, last_ns)
        if packet is None:
            return None
        return LiveDrop(
            deployment=self._deployment(kind),
            kind=kind,
            packet=packet,
            is_counted=True,
            packets=packets,
            payload_bytes=payload_bytes,
            last_ns=last_ns,
        )

    def _said(self, kind: bytes) -> Any:
        return np.frombuffer(kind, self._kind_type)[0]

    def _deployment(self, kind: bytes) -> str:
        return self._deployments[int(self._said(kind)["netns"])].name

    def _noise(self, kind: bytes, packet: DroppedPacket, payload_bytes: int) -> str:
        said = self._said(kind)
        return noise_of(
            protocol=packet.protocol,
            target=address_text(bytes(said["target"])),
            tcp_flags=int(said["tcp_flags"]),
            payload_bytes=payload_bytes,
            reason=packet.reason,
        )

    def _packet(self, kind: bytes, ts_ns: int) -> DroppedPacket | None:
        if kind in self._kinds:
            return self._kinds[kind]
        said = self._said(kind)
        deployment = self._deployments.get(int(said["netns"]))
        if deployment is None:
            return None
        source, target = (address_text(bytes(said[end])) for end in ("source", "target"))
        protocol = _protocol(int(said["ethertype"]), int(said["protocol"]))
        if protocol not in _PROTOCOLS.values() and int(said["ethertype"]) not in _ETHERTYPES:
            source = target = "-"
        reason = self._reasons.get(int(said["reason"]), str(said["reason"]))
        port, flags = int(said["target_port"]), int(said["tcp_flags"])
        verdict, policies, explanation = deployment.explainer_at(ts_ns).why(
            source=source, target=target, protocol=protocol, target_port=port, tcp_flags=flags, reason=reason
        )
        if len(self._kinds) >= _MOST_KINDS:  # somebody makes up addresses
            self._kinds.clear()
        self._kinds[kind] = DroppedPacket(
            ts_ns=ts_ns,
            time_unix_ns=ts_ns + self._offset_ns,
            round=None,
            pod=deployment.places[int(said["netns"])],
            direction=_DIRECTIONS[int(said["direction"])],
            source=deployment.names.get(source, source),
            target=deployment.names.get(target, target),
            protocol=protocol,
            source_port=0,
            target_port=port,
            tcp_flags=flag_letters(flags),
            payload_bytes=0,
            reason=reason,
            location=self._symbol(int(said["location"])),
            head=b"",
            noise="",
            verdict=verdict,
            policies=policies,
            explanation=explanation,
        )
        return self._kinds[kind]


def _protocol(ethertype: int, protocol: int) -> str:
    if ethertype not in _ETHERTYPES:
        return f"ethertype 0x{ethertype:04x}"
    return _PROTOCOLS.get(protocol, f"protocol {protocol}") if protocol else _ETHERTYPES[ethertype]


@dataclass(kw_only=True)
class _Going:
    # Packets alike that go on.
    since_ns: int  # when the window began
    windows: int = 1
    rest: DropBurst | None = None  # of this window, not told yet

    @property
    def window_ns(self) -> int:
        return _FIRST_WINDOW_NS if self.windows <= _FIRST_WINDOWS else _LATER_WINDOW_NS


class DropLines:
    """Which bursts to tell when."""

    def __init__(self) -> None:
        self._going: dict[bytes, _Going] = {}

    def take(self, drop: LiveDrop) -> DropBurst | None:
        """What to tell now: the first packet of a kind."""
        going = self._going.get(drop.kind)
        if going is None:
            going = self._going[drop.kind] = _Going(since_ns=drop.last_ns)
            if not drop.is_counted:
                return _burst(drop, packets=drop.packets, payload_bytes=drop.payload_bytes)
        if going.rest is None:
            going.rest = _burst(drop, packets=0, payload_bytes=0, is_rest=True)
        going.rest.packets += drop.packets
        going.rest.payload_bytes += drop.payload_bytes
        going.rest.last_ns = max(going.rest.last_ns, drop.last_ns)
        return None

    def over(self, now_ns: int) -> list[DropBurst]:
        """What to tell of windows that are over by now."""
        found = []
        for kind, going in list(self._going.items()):
            if now_ns - going.since_ns < going.window_ns:
                continue
            if going.rest is None:
                del self._going[kind]
                continue
            found.append(going.rest)
            going.since_ns, going.windows, going.rest = now_ns, going.windows + 1, None
        return sorted(found, key=lambda burst: burst.last_ns)

    def rest(self) -> list[DropBurst]:
        """What has not been told yet; there is no more to come."""
        return self.over(2**63)


def _burst(drop: LiveDrop, *, packets: int, payload_bytes: int, is_rest: bool = False) -> DropBurst:
    return DropBurst(
        first=drop.packet,
        last_ns=drop.last_ns,
        packets=packets,
        payload_bytes=payload_bytes,
        run=drop.deployment,
        is_rest=is_rest,
    )
