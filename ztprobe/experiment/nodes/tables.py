"""What several nodes saw, as the tables of one run.

Numbers that each kernel gives out by itself are told apart by their node: connections, processes and threads.
Instants stay in their node's clock, by which the analysis finds out how the clocks differ; what happened in a
node's own namespace, which is no pod of a node's, is told by the server's clock right away, as exactly as the
nodes' wall clocks agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ztprobe.agent.interface import Account
from ztprobe.agent.service.node_session import PROCESS_SHIFT, NodeSession
from ztprobe.events.owners import OWNERS
from ztprobe.events.tables import INSTANTS, TABLES, in_order
from ztprobe.experiment.record import tables_in
from ztprobe.rundir.clock import Clock

if TYPE_CHECKING:
    import pandas as pd

    _Tables = dict[str, pd.DataFrame]

__all__ = ("server_time_ns", "tables_of")

_CONNECTION_SHIFT = 58  # beyond what a kernel counts to in the life of a run
_Node = TypeVar("_Node", bound=NodeSession)
_PROCESSES = ("tgid", "tid", "parent", "pid")


def server_time_ns(at_ns: int, clock: Clock, server: Clock) -> int:
    """A node's CLOCK_MONOTONIC told by the server's node's, by way of their wall clocks."""
    unix_ns = clock.unix_ns(at_ns)
    return unix_ns - server.offset_ns(unix_ns - server.offset_ns(at_ns))


def tables_of(
    nodes: Sequence[_Node], more: Callable[[_Node, _Tables], _Tables] = lambda _node, _tables: {}
) -> dict[str, pd.DataFrame]:
    """All of a run's tables, as they are by now.

    :param nodes: the server's first.
    :param more: other tables of a node, made from these.
    """
    parts = [_of_node(node, number, nodes[0].clock, more) for number, node in enumerate(nodes)]
    names = parts[0].keys()
    return {name: _whole(name, [part[name] for part in parts]) for name in names}


def _whole(name: str, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    if len(parts) == 1:
        return parts[0]
    if name in TABLES:
        # Agents that share a kernel (containers that pose as nodes) both see what is in its own namespace.
        whole = in_order(name, parts).drop_duplicates(ignore_index=True)
        whole.attrs = parts[0].attrs
        return whole
    whole = pd.concat(parts, ignore_index=True)
    ends = ["first_seen_ns", "local", "local_port", "remote", "remote_port"]
    whole = whole.sort_values(ends, kind="stable", ignore_index=True)
    whole.attrs = parts[0].attrs
    return whole


def _of_node(
    node: _Node, number: int, server: Clock, more: Callable[[_Node, _Tables], _Tables]
) -> dict[str, pd.DataFrame]:
    reasons = node.facts.drop_reasons if node.facts is not None else {}
    account = node.account or Account(drop_reasons=reasons)
    known = {"pods": node.places, "processes": node.names}
    tables = tables_in(node.batches, account, known, lambda _: "")
    tables |= more(node, tables)
    if number == 0:
        return tables
    clock = node.clock
    return {name: _told(name, table, node, number, (clock, server)) for name, table in tables.items()}


def _told(
    name: str, table: pd.DataFrame, node: NodeSession, number: int, clocks: tuple[Clock, Clock]
) -> pd.DataFrame:
    changed: dict[str, Any] = {}
    for column in _titles(name, table):
        values = table[column].astype("int64")
        if column.endswith("connection"):
            changed[column] = values.where(values == 0, values + (number << _CONNECTION_SHIFT))
        elif column in _PROCESSES:
            changed[column] = values.where(values == 0, values + (number << PROCESS_SHIFT))
    told = table.assign(**changed)
    if "pod" in told and len(told):
        ours = told["pod"].isin(list(node.pods))
        for column in _times(name) if not ours.all() else ():
            told[column] = [
                at if mine or not at else server_time_ns(at, *clocks)
                for at, mine in zip(told[column].tolist(), ours.tolist(), strict=True)
            ]
    told.attrs = table.attrs
    return told


def _titles(name: str, table: pd.DataFrame) -> list[str]:
    return [column for column in _described(name).of_kind("integer") if column in table]


def _described(name: str) -> Any:
    return OWNERS if name == OWNERS.name else TABLES[name]


def _times(name: str) -> list[str]:
    return [column for column in _described(name).of_kind("integer") if column in INSTANTS]
