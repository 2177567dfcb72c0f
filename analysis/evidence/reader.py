"""The one place that reads a run's events: checked tables in, `KernelEvents` out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.evidence.identity import Connections
from analysis.evidence.values import (
    Burst,
    ByPod,
    DnsMessage,
    Drop,
    DuplicateAck,
    Endpoint,
    KernelEvents,
    Key,
    LoKey,
    Packet,
    Pause,
    Retransmission,
    Row,
    Wire,
)
from analysis.intervals import Interval, merged
from ztprobe.events.kinds import Direction, Hook

__all__ = ("TIMES", "read_events")

# Table -> the column that says when; all that a run counts as events.
TIMES = {
    "bursts": "last_ns",
    **dict.fromkeys(
        (
            *("packets", "dns", "connections", "drops", "state_changes", "retransmissions"),
            *("duplicate_acks", "gaps", "blocked_readers", "cpu_waits"),
        ),
        "ts_ns",
    ),
}


def _rows(table: pd.DataFrame, kind: Callable[..., Row], **others: Sequence[Any]) -> Iterator[Row]:
    """A table's rows as values of one type; ``others`` are columns that are not taken as they stand."""
    # What itertuples does, several times as fast: a column at a time.
    columns = (others[name] if name in others else table[name].tolist() for name in kind._fields)  # type: ignore[attr-defined]
    return map(kind._make, zip(*columns, strict=True))  # type: ignore[attr-defined]


def _places(table: pd.DataFrame) -> dict[str, list[Any]]:
    """The columns that hold an enum's name."""
    kinds: dict[str, type[Hook] | type[Direction]] = {"hook": Hook, "direction": Direction}
    return {name: list(map(kind, table[name].tolist())) for name, kind in kinds.items() if name in table}


def _by_connection(table: pd.DataFrame, kind: Callable[..., Row], connections: Connections) -> ByPod[Row]:
    """Rows by pod and connection; those of a connection that is not known are nobody's evidence."""
    grouped: ByPod[Row] = defaultdict(list)
    places = _places(table)
    owners = zip(table["pod"].tolist(), table["connection"].tolist(), strict=True)
    for (pod, connection), row in zip(owners, _rows(table, kind, **places), strict=True):
        if (key := connections.key_of.get(connection)) is not None:
            grouped[pod, key].append(row)
    return dict(grouped)


def _bursts(
    table: pd.DataFrame, connections: Connections
) -> dict[tuple[str, Hook, Key], dict[Direction, list[Burst]]]:
    grouped: dict[tuple[str, Hook, Key], dict[Direction, list[Burst]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for (pod, key), bursts in _by_connection(table, Burst, connections).items():
        for burst in bursts:
            grouped[pod, burst.hook, key][burst.direction].append(burst)
    return {place: dict(found) for place, found in grouped.items()}


def _turns(
    tables: Mapping[str, pd.DataFrame], connections: Connections
) -> dict[tuple[str, Hook, Key], dict[Direction, list[Burst]]]:
    """Turns in the form of bursts; of what held a sender back in one nothing is known."""
    table = tables.get("turns")
    if table is None or not len(table):
        return {}
    length = (table["end_seq"] - table["first_seq"]) % (1 << 32)
    unknown = [name for name in Burst._fields if name not in table]
    as_bursts = table.assign(**dict.fromkeys(unknown, 0)).assign(bytes=length, packets=1)
    return _bursts(as_bursts.sort_values("last_ns", kind="stable", ignore_index=True), connections)


def _drops(table: pd.DataFrame, connections: Connections) -> dict[str, list[Drop]]:
    sources, targets = (
        list(map(Endpoint, table[end].tolist(), table[f"{end}_port"].tolist()))
        for end in ("source", "target")
    )
    wires: list[Wire | None] = []
    columns = (table[name].tolist() for name in ("connection", "protocol", "ts_ns"))
    for source, target, connection, protocol, ts_ns in zip(sources, targets, *columns, strict=True):
        key = connections.key_of.get(connection)
        if key is None and protocol == "tcp":
            # Of another namespace than the pods': on its way between two ends that both have one.
            key = connections.wire_at(source, target, ts_ns)
        wires.append(key if isinstance(key, Wire) else None)
    grouped: dict[str, list[Drop]] = defaultdict(list)
    for drop in _rows(table, Drop, source=sources, target=targets, wire=wires):
        grouped[drop.pod].append(drop)
    return dict(grouped)


def _cpu_waits(table: pd.DataFrame) -> dict[str, list[list[Interval]]]:
    """Process -> of each thread, when it waited, in one piece what touches or overlaps."""
    # By arrays: of a machine with too much to do these are most of a run's events.
    codes, processes = table["process"].factorize()
    threads, _ = pd.factorize(codes.astype(np.int64) << 32 | table["tid"].to_numpy())
    since_ns, until_ns = table["since_ns"].to_numpy(), table["ts_ns"].to_numpy()
    order = np.lexsort((until_ns, since_ns, threads))
    begins = np.flatnonzero(np.diff(threads[order], prepend=-1))
    grouped: dict[str, list[list[Interval]]] = defaultdict(list)
    for rows in np.split(order, begins[1:]) if len(order) else ():
        grouped[processes[codes[rows[0]]]].append(merged(since_ns[rows], until_ns[rows]))
    return dict(grouped)


def _partners(table: pd.DataFrame, connections: Connections) -> dict[tuple[str, Wire], LoKey]:
    votes: dict[tuple[str, Wire], dict[LoKey, int]] = defaultdict(lambda: defaultdict(int))
    columns = (table[name].tolist() for name in ("pod", "from_connection", "to_connection", "count"))
    for pod, source, target, count in zip(*columns, strict=True):
        keys = (connections.key_of.get(source), connections.key_of.get(target))
        lo = [key for key in keys if isinstance(key, LoKey)]
        wire = [key for key in keys if isinstance(key, Wire)]
        if len(lo) == len(wire) == 1:
            votes[pod, wire[0]][lo[0]] += count
    return {place: max(sorted(counts), key=lambda key: counts[key]) for place, counts in votes.items()}


def _reach_ns(tables: Mapping[str, pd.DataFrame]) -> int:
    """A pause or a repair is told when it ends; the longest of them."""
    longest_ns = 0
    for name, since in (("gaps", "since_ns"), ("retransmissions", "first_sent_ns")):
        told = tables[name][tables[name][since] > 0]
        longest_ns = max(longest_ns, int((told["ts_ns"] - told[since]).max()) if len(told) else 0)
    return longest_ns


def read_events(tables: Mapping[str, pd.DataFrame]) -> KernelEvents:
    """Every event of a run whose tables have been checked (`analysis.run_checks`)."""
    connections = Connections(tables["connections"])
    dns = tables["dns"]
    return KernelEvents(
        bursts=_bursts(tables["bursts"], connections),
        turns=_turns(tables, connections),
        packets=_by_connection(tables["packets"], Packet, connections),
        dns=list(_rows(dns, DnsMessage, **_places(dns))),
        drops=_drops(tables["drops"], connections),
        retransmissions=_by_connection(tables["retransmissions"], Retransmission, connections),
        duplicate_acks=_by_connection(tables["duplicate_acks"], DuplicateAck, connections),
        gaps=_by_connection(tables["gaps"], Pause, connections),
        blocked_readers=_by_connection(tables["blocked_readers"], Pause, connections),
        cpu_waits=_cpu_waits(tables["cpu_waits"]),
        partners=_partners(tables["pairs"], connections),
        times_ns=np.sort(np.concatenate([tables[name][column].to_numpy() for name, column in TIMES.items()])),
        reach_ns=_reach_ns(tables),
    )
