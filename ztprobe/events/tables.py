"""What a run keeps of the kernel's events: a table for each kind, with columns that say what they hold.

Members of ``ebpf/events.h`` become columns of the same name, with three changes: numbers that stand for
something become its name (pods, processes, enums, drop reasons, symbols), addresses become text, and what
can be read off a dropped packet's head gets columns of its own. `TABLES` is the one list of tables and
columns: saved Parquet files carry its descriptions, docs/events.md is written from it, and the analysis
checks what it reads against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ztprobe.events.heads import address_text, read_head
from ztprobe.events.kinds import EventKind, Family, TcpState, name_of
from ztprobe.events.layout import dtype_of, enums, structs
from ztprobe.events.rings import ATTACHED_TABLES, RINGS

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "ATTACHED_TABLES",
    "INSTANTS",
    "RINGS",
    "TABLES",
    "Column",
    "Names",
    "Table",
    "decode",
    "empty_table",
    "empty_tables",
    "in_order",
    "pairs_table",
    "ring_type",
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; ``values``: the texts that it may hold, if they are few."""

    name: str
    kind: str  # integer | text | bytes
    description: str
    values: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One kind of event; rows are ordered by one column, and then by all the others."""

    name: str
    description: str
    order: str
    columns: tuple[Column, ...]
    struct: str | None = None
    kinds: tuple[EventKind, ...] = ()

    def column(self, name: str) -> Column:
        """:raises KeyError: there is none of that name."""
        found = next((column for column in self.columns if column.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def of_kind(self, kind: str) -> list[str]:
        """The names of the columns that hold integers, text or bytes."""
        return [column.name for column in self.columns if column.kind == kind]


@dataclass(frozen=True, kw_only=True)
class Names:
    """What numbers stand for: of namespaces, processes, drop reasons and addresses in the kernel."""

    pods: Mapping[int, str]  # network namespace inode -> pod
    processes: Mapping[int, str]  # process id -> pod/container
    reasons: Mapping[int, str]
    symbol: Callable[[int], str]


# Columns that say when something happened; 0: it did not. Other columns in _ns are lengths of time.
INSTANTS = (
    *("ts_ns", "first_ns", "last_ns", "tail_ns", "opened_ns", "since_ns", "frame_ns"),
    *("first_sent_ns", "later_sent_ns", "own_ns"),
    *("first_seen_ns", "last_seen_ns"),
)
# Members that are an enum's number and become its name.
_STATES = {name_of(state): int(state) for state in TcpState}
_ENUMS: dict[str, Mapping[str, int]] = {
    "hook": enums()["hook"],
    "direction": enums()["direction"],
    "how": enums()["how"],
    "family": {name_of(family): int(family) for family in Family},
    **dict.fromkeys(("tcp_state", "old_state", "new_state"), _STATES),
}
# ts_ns is the end of what lasted; where the beginning stands beside it, it is called so.
_RENAMED = {("burst", "ts_ns"): "last_ns", ("turn", "ts_ns"): "last_ns", ("module_load", "ts_ns"): "last_ns"}
_POD = "the pod that it happened in; node: the node's own namespace; empty: a pod that was not known"
_PROCESS = "the thread's process: pod/container; empty: none, or one that was not known"
_DROP_COLUMNS = {
    "protocol": ("text", "tcp, udp, icmp or icmpv6"),
    "source": ("text", "address that the packet came from"),
    "target": ("text", "address that the packet was for"),
    "source_port": ("integer", "its port; 0: none"),
    "target_port": ("integer", "its port; 0: none"),
    "tcp_flags": ("integer", "flags of the TCP header; 0: no TCP"),
    "seq": ("integer", "TCP sequence number; 0: no TCP"),
    "payload_bytes": ("integer", "bytes behind the transport header, by the IP header's length"),
}
# What of the prefix a kind has beside time and namespace.
_OF_THREADS = ("burst", "state_change", "cpu_wait", "turn", "process_start", "module_load")
_WITHOUT_CONNECTION = ("dns", "cpu_wait", "process_start", "module_load")
_STRUCTS: dict[str, tuple[str, tuple[EventKind, ...]]] = {
    "bursts": ("burst", (EventKind.BURST,)),
    "packets": ("packet", (EventKind.SETUP, EventKind.PAYLOAD)),
    "dns": ("dns", (EventKind.DNS,)),
    "connections": ("connection", (EventKind.CONNECTION,)),
    "drops": ("drop", (EventKind.DROP,)),
    "state_changes": ("state_change", (EventKind.STATE_CHANGE,)),
    "retransmissions": ("retransmission", (EventKind.RETRANSMISSION,)),
    "duplicate_acks": ("duplicate_ack", (EventKind.DUPLICATE_ACK,)),
    "gaps": ("gap", (EventKind.GAP,)),
    "blocked_readers": ("blocked_reader", (EventKind.BLOCKED_READER,)),
    "cpu_waits": ("cpu_wait", (EventKind.CPU_WAIT,)),
    "turns": ("turn", (EventKind.TURN,)),
    "process_starts": ("process_start", (EventKind.PROCESS_START,)),
    "module_loads": ("module_load", (EventKind.MODULE_LOAD,)),
}


def _members(struct: str) -> Iterable[tuple[str, str]]:
    """(member, its comment) of those that become columns of their own."""
    left_out = {"pad", "kind", "netns", "head_bytes", "data_bytes"}
    left_out |= set() if struct in _OF_THREADS else {"tid", "tgid"}
    left_out |= {"connection"} if struct in _WITHOUT_CONNECTION else set()
    return [(name, said) for name, said in structs()[struct].members.items() if name not in left_out]


def _column(struct: str, member: str, comment: str) -> Column:
    name = _RENAMED.get((struct, member), member)
    comment = "its last byte" if name == "last_ns" else comment
    if member in _ENUMS:
        values = frozenset(_ENUMS[member])
        if comment.startswith("enum "):
            comment = {
                "hook": "where it was seen",
                "direction": "which way the bytes went",
                "how": "fork: a copy of its parent; exec: another program in the same process",
            }[member]
        return Column(name=name, kind="text", description=comment, values=values)
    if member in ("local", "remote", "reason", "location", "command"):
        return Column(name=name, kind="text", description=comment)
    return Column(name=name, kind="bytes" if member in ("data", "head") else "integer", description=comment)


def _table(name: str, struct: str, kinds: tuple[EventKind, ...]) -> Table:
    first, *others = (_column(struct, member, comment) for member, comment in _members(struct))
    columns = [first, Column(name="pod", kind="text", description=_POD)]
    if len(kinds) > 1:
        values = frozenset(name_of(kind) for kind in kinds)
        said = "setup: SYN, FIN or RST; payload: one of a connection's first"
        columns.append(Column(name="kind", kind="text", description=said, values=values))
    columns += others
    if struct in _OF_THREADS:
        columns.append(Column(name="process", kind="text", description=_PROCESS))
    if struct == "drop":
        columns += [Column(name=key, kind=k, description=said) for key, (k, said) in _DROP_COLUMNS.items()]
    columns.append(
        Column(
            name="netns",
            kind="integer",
            description=structs()[struct].members["netns"] + ", as the kernel saw it",
        )
    )
    description = structs()[struct].description
    order = "first_ns" if name in ("bursts", "turns", "module_loads") else first.name
    return Table(
        name=name, description=description, order=order, columns=tuple(columns), struct=struct, kinds=kinds
    )


_PAIRS = Table(
    name="pairs",
    order="pod",
    description="What a proxy's threads did: a read from one connection and the next write to another. "
    "It ties the two connections of a proxied message together.",
    columns=(
        Column(name="pod", kind="text", description=_POD),
        Column(name="count", kind="integer", description="how often"),
        Column(name="from_connection", kind="integer", description="the connection that was read from"),
        Column(name="to_connection", kind="integer", description="the connection that was written to"),
    ),
)

TABLES: dict[str, Table] = {name: _table(name, *of) for name, of in _STRUCTS.items()} | {"pairs": _PAIRS}


def _described(table: Table, columns: Mapping[str, Any]) -> pd.DataFrame:
    """A frame with the table's columns in their order; what they are travels with it."""
    import pandas as pd  # not for an agent, which only passes records on

    frame = pd.DataFrame({column.name: columns[column.name] for column in table.columns})
    integers = table.of_kind("integer")
    frame = frame.astype(dict.fromkeys(integers, np.int64) | {n: object for n in frame if n not in integers})
    frame.attrs["description"] = table.description
    frame.attrs["columns"] = {column.name: column.description for column in table.columns}
    return frame


def ring_type(ring: str) -> np.dtype[np.void]:
    """The numpy type of a ring's records; all of them have the size of its first kind's."""
    return dtype_of(TABLES[RINGS[ring][0]].struct or "")


def in_order(name: str, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Pieces of one table as a whole, in its order."""
    if len(parts) == 1:
        return parts[0]
    import pandas as pd

    whole = pd.concat(parts, ignore_index=True)
    whole = whole.sort_values(TABLES[name].order, kind="stable", ignore_index=True)
    whole.attrs = parts[0].attrs
    return whole


def decode(ring: str, rows: np.ndarray, names: Names) -> dict[str, pd.DataFrame]:
    """The records of one ring as tables, each in the order of time.

    :param rows: structured array, of the type of any struct in that ring.
    """
    found = {}
    for name in RINGS[ring]:
        table = TABLES[name]
        if table.struct is None:
            raise ValueError(f"{name} comes from no ring")
        mine = rows[np.isin(rows["kind"], table.kinds)].view(dtype_of(table.struct))
        frame = _described(table, _columns(table, table.struct, mine, names))
        found[name] = frame.sort_values(table.order, kind="stable", ignore_index=True)
    return found


def _columns(table: Table, struct: str, rows: np.ndarray, names: Names) -> dict[str, Any]:
    columns: dict[str, Any] = {"netns": rows["netns"].astype(np.int64)}
    columns["pod"] = [names.pods.get(inode, "") for inode in rows["netns"].tolist()]
    if len(table.kinds) > 1:
        columns["kind"] = [name_of(EventKind(kind)) for kind in rows["kind"].tolist()]
    for member, _ in _members(struct):
        columns[_RENAMED.get((struct, member), member)] = _values(member, rows, names)
    if struct in _OF_THREADS:
        columns["process"] = [names.processes.get(tgid, "") for tgid in rows["tgid"].tolist()]
    if struct == "drop":
        heads = [read_head(head) for head in columns["head"]]
        columns |= {name: [getattr(head, name) for head in heads] for name in _DROP_COLUMNS}
    return columns


def _values(member: str, rows: np.ndarray, names: Names) -> Any:
    values = rows[member]
    if member in _ENUMS:
        spelled = {number: name for name, number in _ENUMS[member].items()}
        return [spelled.get(value, "unknown") for value in values.tolist()]
    if member in ("local", "remote"):
        return [address_text(bytes(value)) for value in values]
    if member == "reason":
        return [names.reasons.get(number, str(number)) for number in values.tolist()]
    if member == "location":
        symbols = {address: names.symbol(address) for address in set(values.tolist())}
        return [symbols[address] for address in values.tolist()]
    if member == "command":
        return [bytes(value).split(b"\0")[0].decode(errors="replace") for value in values]
    if member in ("data", "head"):
        lengths = rows[f"{member}_bytes"].tolist()
        return [bytes(value)[:length] for value, length in zip(values, lengths, strict=True)]
    # Parquet has no trouble with unsigned, but subtraction does: times are signed from here on.
    return values.astype(np.int64)


def pairs_table(pairs: Mapping[tuple[int, int], int], pod_of: Mapping[int, str]) -> pd.DataFrame:
    """A proxy's reads and the writes that followed, by thread.

    :param pairs: (connection read from, the same written to) -> times.
    :param pod_of: connection -> pod.
    """
    rows = sorted(
        (pod_of.get(source, ""), count, source, target) for (source, target), count in pairs.items()
    )
    columns = list(zip(*rows, strict=True)) or [()] * 4
    names = [column.name for column in _PAIRS.columns]
    return _described(_PAIRS, dict(zip(names, map(list, columns), strict=True)))


def empty_tables() -> dict[str, pd.DataFrame]:
    """Every table, without rows."""
    return {name: empty_table(name) for name in TABLES}


def empty_table(name: str) -> pd.DataFrame:
    """One of the tables, without rows."""
    table = TABLES[name]
    return _described(table, {column.name: [] for column in table.columns})
