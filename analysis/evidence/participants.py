"""A run that was attached to, told by participants: each as if it had a pod of its own.

What the kernel saw goes by network namespaces, and several participants may share one; on one machine all of
them speak over its loopback. The owners table says whose each end of a connection was. Here every event gets
its participant's name for its pod, and what two participants said to each other over a loopback becomes what
it was to them: bytes that one sent and the other received at the same moment. Their addresses are then their
names, because 127.0.0.1 is everybody's. Whoever reads connections (`analysis.ledger`) needs to know nothing
of all this. Pure.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from ztprobe.events.kinds import Direction, Hook
from ztprobe.events.owners import SIDECAR
from ztprobe.rundir.store import Run

__all__ = ("MIRRORED", "by_participant")

# Both ends of a loopback connection have events under one identity; the remote end's get this added.
MIRRORED = 1 << 62
_FLIPPED = {Direction.TX: Direction.RX, Direction.RX: Direction.TX}
_LOOPBACK = ("127.", "::1")


class _Ends(NamedTuple):
    """Whose the two ends of a connection's row are; empty: nobody's who takes part."""

    local: str
    remote: str
    is_between: bool  # two participants, over the loopback of the namespace that they share


class _Owners:
    """Who had an end of a connection, or listened at a port."""

    def __init__(self, table: pd.DataFrame, meta: Mapping[str, Any]) -> None:
        self._ends: dict[tuple[Any, ...], list[tuple[int, str]]] = defaultdict(list)
        self.listening: dict[tuple[str, int], str] = {}
        self.by_end: dict[tuple[str, int], str] = {}
        for row in _rows(table):
            if row.remote_port:
                ends = (row.pod, row.local, row.local_port, row.remote, row.remote_port)
                self._ends[ends].append((row.first_seen_ns, row.participant))
                self.by_end[row.local, row.local_port] = row.participant
            else:
                self.listening[row.pod, row.local_port] = row.participant
        inside: dict[str, set[str]] = defaultdict(set)
        self.elsewhere: dict[str, str] = {}
        for one in meta["attachment"]["participants"]:
            inside[one["pod"]].add(one["name"])
            if one.get("address"):
                self.elsewhere[one["address"]] = one["name"]
        for pod, participant in zip(table["pod"].tolist(), table["participant"].tolist(), strict=True):
            inside[pod].add(participant)
        shared = {pod["name"] for pod in meta["pods"] if pod["name"] == "host"}
        self._alone = {
            pod: next(iter(names)) for pod, names in inside.items() if len(names) == 1 and pod not in shared
        }
        self._pods_at: dict[str, list[str]] = defaultdict(list)
        for pod in meta["pods"]:
            for address in pod.get("addresses", [pod["address"]]):
                if not address.startswith(_LOOPBACK):
                    self._pods_at[address].append(pod["name"])

    def is_inside(self, pod: str, address: str) -> bool:
        """Whether what goes to this address does not leave the namespace."""
        return address.startswith(_LOOPBACK) or pod in self._pods_at[address]

    def of(self, row: Any) -> _Ends:
        """Both ends of a row of the connection table."""
        mine = (row.local, row.local_port, row.remote, row.remote_port)
        theirs = (*mine[2:], *mine[:2])
        local = self._end(row.pod, mine, row.ts_ns)
        if self.is_inside(row.pod, row.remote):
            remote = self._end(row.pod, theirs, row.ts_ns)
            return _Ends(local, remote, is_between=bool(local and remote) and local != remote)
        places = self._pods_at[row.remote]
        remote = next(filter(None, (self._end(pod, theirs, row.ts_ns) for pod in places)), "")
        return _Ends(local, remote or self.elsewhere.get(row.remote, ""), is_between=False)

    def _end(self, pod: str, ends: tuple[Any, ...], when_ns: int) -> str:
        if known := self._ends.get((pod, *ends)):
            # The ends come again: a socket table that was looked at right after this one's beginning has it.
            return min(known, key=lambda entry: abs(entry[0] - when_ns))[1]
        return self.listening.get((pod, ends[1])) or self._alone.get(pod, "")


def by_participant(run: Run) -> Run:
    """The run with a pod for each participant; any other run as it is.

    :param run: of checked tables, with ``owners`` among them if it was attached to.
    """
    if "attachment" not in run.meta:
        return run
    owners = _Owners(run.events["owners"], run.meta)
    connections = run.events["connections"]
    ends = {row.connection: owners.of(row) for row in _rows(connections)}
    events = dict(run.events)
    events["connections"] = _connections(connections, ends)
    for name in ("bursts", "turns", "packets"):
        if name in events:
            events[name] = _both_sides(events[name], ends)
    events["bursts"] = _with_closed_windows(events["bursts"], run.events["blocked_readers"], ends)
    for name in ("gaps", "blocked_readers"):
        events[name] = _senders(events[name], ends)
    for name in ("retransmissions", "duplicate_acks"):
        events[name] = _renamed(events[name], ends)
    events["state_changes"] = _state_changes(events["state_changes"], connections, ends)
    events["drops"] = _drops(events["drops"], ends, owners)
    events["pairs"] = _renamed(events["pairs"], ends, by="from_connection")
    for name, table in events.items():
        if "process" in table:
            events[name] = table.assign(process=table["process"].map(_by_container))
    return dataclasses.replace(run, events=events, meta=_meta(run.meta, owners, events))


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    return iter(table.itertuples(index=False))


def _by_container(process: str) -> str:
    participant = process.partition("/")[2]
    return f"{participant}/{participant}" if participant not in ("", SIDECAR) else process


def _connections(table: pd.DataFrame, ends: Mapping[int, _Ends]) -> pd.DataFrame:
    rows = [ends[connection] for connection in table["connection"].tolist()]
    columns = [table[name].tolist() for name in ("pod", "local", "remote")]
    named = []
    for end, pod, local, remote in zip(rows, *columns, strict=True):
        is_internal = end.local == end.remote and local.startswith(_LOOPBACK)
        named.append(
            (
                end.local or pod,
                local if is_internal else end.local or local,
                remote if is_internal else end.remote or remote,
            )
        )
    whole = table.assign(
        **{
            name: pd.Series([one[at] for one in named], index=table.index, dtype=object)
            for at, name in enumerate(("pod", "local", "remote"))
        }
    )
    is_between = pd.Series([one.is_between for one in rows], index=table.index, dtype=bool)
    mirrored = whole[is_between]
    mirrored = mirrored.assign(
        connection=mirrored["connection"] + MIRRORED,
        pod=mirrored["remote"],
        local=mirrored["remote"],
        remote=mirrored["local"],
        local_port=mirrored["remote_port"],
        remote_port=mirrored["local_port"],
    )
    return _in_time(pd.concat([whole, mirrored]), "ts_ns")


def _pods_of(table: pd.DataFrame, ends: Mapping[int, _Ends], by: str = "connection") -> pd.Series[Any]:
    names = [
        (end.local if (end := ends.get(connection)) is not None else "") or pod
        for connection, pod in zip(table[by].tolist(), table["pod"].tolist(), strict=True)
    ]
    return pd.Series(names, index=table.index, dtype=object)


def _renamed(table: pd.DataFrame, ends: Mapping[int, _Ends], by: str = "connection") -> pd.DataFrame:
    return table.assign(pod=_pods_of(table, ends, by))


def _between(table: pd.DataFrame, ends: Mapping[int, _Ends], *, on_loopback: bool = True) -> pd.Series[bool]:
    """The rows that two participants have to share: what was seen of a loopback's packets."""
    shared = {connection for connection, end in ends.items() if end.is_between}
    chosen = table["connection"].isin(shared)
    return chosen & (table["hook"] == Hook.LO) if on_loopback and "hook" in table else chosen


def _both_sides(table: pd.DataFrame, ends: Mapping[int, _Ends]) -> pd.DataFrame:
    """Of packets on a loopback, what the local end's participant saw and what the remote end's did."""
    chosen = _between(table, ends)
    as_eth: dict[str, Any] = {"hook": str(Hook.ETH)} if "hook" in table else {}
    mine = _renamed(table, ends)
    local = mine[chosen].assign(**as_eth)
    remote = table[chosen].assign(
        **as_eth,
        pod=[ends[connection].remote for connection in table.loc[chosen, "connection"].tolist()],
        connection=table.loc[chosen, "connection"] + MIRRORED,
        direction=table.loc[chosen, "direction"].map(_FLIPPED).astype(object),
    )
    order = "first_ns" if "first_ns" in table else "ts_ns"
    return _in_time(pd.concat([mine[~chosen], local, remote]), order)


def _senders(table: pd.DataFrame, ends: Mapping[int, _Ends]) -> pd.DataFrame:
    """Pauses of a sender's are the sender's alone."""
    chosen = _between(table, ends)
    sent_here = table["direction"] == Direction.TX
    mine = _renamed(table, ends)
    as_sent = {"hook": str(Hook.ETH), "direction": str(Direction.TX)}
    local = mine[chosen & sent_here].assign(**as_sent)
    theirs = table[chosen & ~sent_here]
    remote = theirs.assign(
        **as_sent,
        pod=[ends[connection].remote for connection in theirs["connection"].tolist()],
        connection=theirs["connection"] + MIRRORED,
    )
    return _in_time(pd.concat([mine[~chosen], local, remote]), "ts_ns")


def _with_closed_windows(
    bursts: pd.DataFrame, blocked: pd.DataFrame, ends: Mapping[int, _Ends]
) -> pd.DataFrame:
    """A reader that did not read held back a sender over the loopback, as a closed window does elsewhere."""
    waits: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    between = blocked[_between(blocked, ends)]
    for row in _rows(between):
        sent = row.direction == Direction.TX
        connection = row.connection if sent else row.connection + MIRRORED
        waits[connection, str(Direction.TX)].append((row.since_ns, row.ts_ns))
    if not waits:
        return bursts
    columns = (bursts[name].tolist() for name in ("connection", "direction", "first_ns", "last_ns"))
    more = [
        sum(until - since for since, until in waits.get((connection, direction), ()) if first < until <= last)
        for connection, direction, first, last in zip(*columns, strict=True)
    ]
    return bursts.assign(rwnd_ns=bursts["rwnd_ns"] + pd.Series(more, index=bursts.index, dtype="int64"))


def _state_changes(table: pd.DataFrame, connections: pd.DataFrame, ends: Mapping[int, _Ends]) -> pd.DataFrame:
    ports = dict(zip(connections["connection"].tolist(), connections["local_port"].tolist(), strict=True))
    pods, ids = [], []
    columns = (table[name].tolist() for name in ("connection", "pod", "local_port", "process"))
    for connection, pod, local_port, process in zip(*columns, strict=True):
        end = ends.get(connection)
        mirrored = end is not None and end.is_between and ports.get(connection) != local_port
        if end is None:
            pods.append(_by_container(process).partition("/")[0] or pod)
        else:
            pods.append((end.remote if mirrored else end.local) or pod)
        ids.append(connection + MIRRORED if mirrored else connection)
    return table.assign(
        pod=pd.Series(pods, index=table.index, dtype=object),
        connection=pd.Series(ids, index=table.index, dtype="int64"),
    )


def _drops(table: pd.DataFrame, ends: Mapping[int, _Ends], owners: _Owners) -> pd.DataFrame:
    named = _renamed(table, ends)
    for end in ("source", "target"):
        columns = zip(table[end].tolist(), table[f"{end}_port"].tolist(), strict=True)
        names = [
            owners.by_end.get((address, port)) or owners.elsewhere.get(address, address)
            for address, port in columns
        ]
        named[end] = pd.Series(names, index=table.index, dtype=object)
    return named


def _in_time(table: pd.DataFrame, order: str) -> pd.DataFrame:
    return table.sort_values([order, "connection"], kind="stable", ignore_index=True)


def _meta(meta: Mapping[str, Any], owners: _Owners, events: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """run.json as if each participant had a pod whose address is its name."""
    roles = {one["name"]: one["role"] for one in meta["attachment"]["participants"]}
    server = next(name for name, role in roles.items() if role == "server")
    pods = [
        {"name": name, "namespace": "", "labels": {"role": role}, "address": name}
        for name, role in roles.items()
    ]
    listening = {(name, port) for (_, port), name in owners.listening.items()}
    spoken = events["connections"]
    serves: dict[str, list[str]] = defaultdict(list)
    found = set()
    columns = (spoken[name].tolist() for name in ("local", "local_port", "remote", "remote_port"))
    for local, local_port, remote, remote_port in zip(*columns, strict=True):
        for target, port, other in ((local, local_port, remote), (remote, remote_port, local)):
            if (target, port) in listening and other in roles and other != target:
                found.add((other, other, target, port))
                if other not in serves[target]:
                    serves[target].append(other)
    ports = sorted(
        {(target, port) for _, _, target, port in found} | {(n, p) for n, p in listening if n == server}
    )
    topology = {
        "rounds_of": server,
        "pods": list(roles),
        "endpoints": [
            {"pod": name, "container": name, "address": "0.0.0.0", "port": port, "reachable": True}
            for name, port in ports
        ],
        "connections": [
            dict(zip(("pod", "container", "to", "port"), one, strict=True)) for one in sorted(found)
        ],
        "serves": {name: sorted(clients) for name, clients in sorted(serves.items())},
        "behind_sidecar": dict.fromkeys(sorted(set(events["pairs"]["pod"]) & set(roles)), SIDECAR),
    }
    return {**meta, "pods": pods, "topology": topology}
