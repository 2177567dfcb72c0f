"""Which connections carried the experiment, and which loopback connection belongs to which wire connection.

A *path* is what one client's messages travel: client application, its sidecar (if
there is one), the wire, the server's sidecar, the server application. With
sidecars every application's peer is 127.0.0.1, so the pieces are joined by what the
proxies' threads did: a read on one side and the next write on the other, counted
by the probes; the partner with the highest count is the right one.
"""

from __future__ import annotations

from collections import defaultdict, namedtuple
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.conditions import Conditions
from analysis.intervals import Interval, union
from ztprobe.events import Hook, PacketKind, PointKind, address_number

__all__ = ("LoKey", "Path", "Topology", "drop_reasons", "topology_of")

_SYN = 2
_LOOPBACK = 127  # lowest byte of an address in network order, read little-endian
# Control traffic and handshakes stay below; most models are larger by orders of magnitude.
_MESSAGE_MIN_BYTES = 8 << 10
_MESSAGE_MIN_SHARE = 0.25

LoKey = tuple[str, int, int]  # pod, lower port, higher port
Wire = tuple[int, int]  # the client's address and port: both ends name a connection the same way


@dataclass(frozen=True)
class Path:
    """One wire connection between a client and the server, with its loopback partners."""

    client: str
    wire: Wire
    client_lo: LoKey | None
    server_lo: LoKey | None


@dataclass
class Topology:
    """Events grouped by connection, ready to be looked up."""

    server: str
    clients: tuple[str, ...]
    paths: list[Path]
    # eth_key or lo_key -> direction -> bursts in time order
    bursts: dict[tuple[Any, ...], dict[int, list[Any]]]
    packets: dict[Wire, list[Any]]  # at the client's eth0
    lo_opened_ns: dict[LoKey, int]
    points: pd.DataFrame
    dns_packets: list[Any]
    conditions: Conditions = field(default_factory=Conditions)  # of the emulated path
    full_queue: frozenset[int] = frozenset()  # the kernel's drop reasons for that

    def expect_sidecars(self) -> None:
        """Both ends have one: a path without loopback connections has lost them, and is no direct way."""
        self.paths = [
            Path(
                path.client,
                path.wire,
                path.client_lo or (path.client, 0, 0),
                path.server_lo or (self.server, 0, 0),
            )
            for path in self.paths
        ]

    def messages(self, key: tuple[Any, ...], direction: int) -> list[Any]:
        """Bursts of a connection at a hook that are whole messages, not control traffic."""
        found = self.bursts.get(key, {}).get(direction, [])
        largest_bytes = max((b.bytes for b in found), default=0)
        limit_bytes = max(_MESSAGE_MIN_BYTES, _MESSAGE_MIN_SHARE * largest_bytes)
        return [b for b in found if b.bytes >= limit_bytes]

    @cached_property
    def waits(self) -> dict[str, list[list[Interval]]]:
        """ "pod/container" -> of each of its threads, the disjoint stretches of waiting for a CPU."""
        table = self.points[self.points["kind"] == PointKind.WAIT]
        columns = (table[name].tolist() for name in ("process", "tid", "since_ns", "ts_ns"))
        threads: dict[tuple[str, int], list[Interval]] = defaultdict(list)
        for process, tid, since_ns, until_ns in zip(*columns, strict=True):
            threads[process, tid].append((since_ns, until_ns))
        grouped: dict[str, list[list[Interval]]] = defaultdict(list)
        for (process, _), waited in threads.items():
            grouped[process].append(union(waited))
        return grouped

    def points_of(self, pod: str, kind: PointKind) -> list[Any]:
        """A pod's points of one kind, in time order; not its waits for a CPU, which `waits` has."""
        return self._points_by_kind.get((pod, int(kind)), [])

    def wire_points(self, pod: str, kind: PointKind, wire: Wire) -> list[Any]:
        """... of one wire connection."""
        return self._points_by_wire.get((pod, int(kind), wire), [])

    def lo_points(self, lo: LoKey, kind: PointKind) -> list[Any]:
        """... of one loopback connection, for the kinds that name a hook (GAP, BLOCKED)."""
        return self._points_by_lo.get((lo, int(kind)), [])

    def refused(self, sender: str, wire: Wire) -> list[Any]:
        """What a full queue at a sender, or on the node behind it, dropped of a wire connection."""
        return [
            p
            for place in (sender, "node")
            for p in self.points_of(place, PointKind.DROP)
            if p.a in self.full_queue and p.small_ns and _wire(p, sender == self.server) == wire
        ]

    # Looked up for every message, of which a long run has thousands: each point is seen once here instead.

    @cached_property
    def _points_by_kind(self) -> dict[tuple[str, int], list[Any]]:
        grouped: dict[tuple[str, int], list[Any]] = defaultdict(list)
        for row in _rows(self.points[self.points["kind"] != PointKind.WAIT]):
            grouped[row.pod, row.kind].append(row)
        return grouped

    @cached_property
    def _points_by_wire(self) -> dict[tuple[str, int, Wire], list[Any]]:
        grouped: dict[tuple[str, int, Wire], list[Any]] = defaultdict(list)
        for (pod, kind), points in self._points_by_kind.items():
            for point in points:
                grouped[pod, kind, _wire(point, pod == self.server)].append(point)
        return grouped

    @cached_property
    def _points_by_lo(self) -> dict[tuple[LoKey, int], list[Any]]:
        grouped: dict[tuple[LoKey, int], list[Any]] = defaultdict(list)
        for (pod, kind), points in self._points_by_kind.items():
            for point in points:
                if point.b == Hook.LO:
                    grouped[_lo_key(pod, point.lport, point.rport), kind].append(point)
        return grouped


def drop_reasons(meta: Mapping[str, Any], name: str) -> frozenset[int]:
    """The numbers that a run's kernel (run.json) has for a drop reason; none where it has no such reason."""
    return frozenset(int(number) for number, one in meta.get("drop_reasons", {}).items() if one == name)


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    """A table's rows, with plain Python values under the columns' names."""
    # What itertuples does, several times as fast: a column at a time.
    row = namedtuple("row", table.columns)  # type: ignore[misc]
    return map(row._make, zip(*(table[name].tolist() for name in table), strict=True))


def _lo_key(pod: str, lport: int, rport: int) -> LoKey:
    return (pod, min(lport, rport), max(lport, rport))


def _wire(row: Any, at_server: bool) -> Wire:
    return (row.raddr, row.rport) if at_server else (row.laddr, row.lport)


def _partners(pairs: pd.DataFrame, server: str) -> dict[tuple[str, Wire], LoKey]:
    """(pod, wire connection) -> loopback partner with the highest count."""
    votes: dict[tuple[str, Wire], dict[LoKey, int]] = defaultdict(lambda: defaultdict(int))
    for row in _rows(pairs.rename(columns={"count": "times"})):
        sides = [
            (row.from_laddr, row.from_raddr, row.from_lport, row.from_rport),
            (row.to_laddr, row.to_raddr, row.to_lport, row.to_rport),
        ]
        lo = [s for s in sides if s[0] & 0xFF == _LOOPBACK]
        eth = [s for s in sides if s[0] & 0xFF != _LOOPBACK]
        if len(lo) != 1 or len(eth) != 1:
            continue
        laddr, raddr, lport, rport = eth[0]
        wire = (raddr, rport) if row.pod == server else (laddr, lport)
        votes[row.pod, wire][_lo_key(row.pod, lo[0][2], lo[0][3])] += row.times
    return {wire: max(sorted(counts), key=lambda k: counts[k]) for wire, counts in votes.items()}


def _group_bursts(rows: Iterable[Any], server: str) -> dict[tuple[Any, ...], dict[int, list[Any]]]:
    grouped: dict[tuple[Any, ...], dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.laddr & 0xFF == _LOOPBACK:
            key = lo_key(row.hook, _lo_key(row.pod, row.lport, row.rport))
        else:
            key = eth_key(row.pod, row.hook, _wire(row, row.pod == server))
        grouped[key][row.dir].append(row)
    return grouped


def topology_of(pods: list[dict[str, Any]], events: dict[str, pd.DataFrame], server_port: int) -> Topology:
    """Group a run's events by connection.

    :param pods: run.json's ``pods``: name, address, labels.
    :param events: the run's tables (bursts, packets, points, pairs).
    """
    server = next(p["name"] for p in pods if p["labels"].get("app") == "fl-server")
    # With edge aggregators in between, those are whom the server hears from.
    role = "fl-edge" if any(p["labels"].get("app") == "fl-edge" for p in pods) else "fl-client"
    clients = tuple(p["name"] for p in pods if p["labels"].get("app") == role)
    address = {p["name"]: address_number(p["address"]) for p in pods}
    owner = {address[name]: name for name in clients}
    partners = _partners(events["pairs"], server)
    packets: dict[Wire, list[Any]] = defaultdict(list)
    lo_opened_ns: dict[LoKey, int] = {}
    dns: list[Any] = []
    for row in _rows(events["packets"]):
        if row.kind == PacketKind.DNS:
            dns.append(row)
        elif row.laddr & 0xFF == _LOOPBACK:
            if row.kind == PacketKind.SETUP and row.flags & _SYN:
                lo_opened_ns.setdefault(_lo_key(row.pod, row.lport, row.rport), int(row.ts_ns))
        elif row.pod in clients and row.rport == server_port and row.raddr == address[server]:
            packets[row.laddr, row.lport].append(row)
    bursts = _group_bursts(_rows(events["bursts"]), server)
    wires = set(packets)
    for key, directions in bursts.items():
        if key[0] == server and key[1] == Hook.ETH and key[3][0] in owner and any(directions.values()):
            wires.add(key[3])
    paths = [
        Path(owner[wire[0]], wire, partners.get((owner[wire[0]], wire)), partners.get((server, wire)))
        for wire in sorted(wires)
    ]
    return Topology(server, clients, paths, bursts, dict(packets), lo_opened_ns, events["points"], dns)


def eth_key(pod: str, hook: int, wire: Wire) -> tuple[Any, ...]:
    """Key of `Topology.bursts` for a wire connection seen from ``pod``."""
    return (pod, int(hook), "eth", wire)


def lo_key(hook: int, lo: LoKey) -> tuple[Any, ...]:
    """Key of `Topology.bursts` for a loopback connection."""
    return (lo[0], int(hook), "lo", (lo[1], lo[2]))
