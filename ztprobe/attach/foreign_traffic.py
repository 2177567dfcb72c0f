"""Rows of others that share a namespace with the deployment: they are not kept.

What runs in the machine's own namespace is watched together with everything else there. A connection is
the deployment's if one of its ends is a participant's, by the owners table; a dropped packet if it is of such
a connection's addresses and ports. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ztprobe.events.kinds import NODE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("without_foreign",)

_ENDS = ("local", "local_port", "remote", "remote_port")


def without_foreign(
    tables: Mapping[str, pd.DataFrame], owners: pd.DataFrame, shared: frozenset[str]
) -> dict[str, pd.DataFrame]:
    """The tables without what happened to others.

    :param shared: pods in which others run, too.
    """
    owned = _both_ways(owners)
    listening = set(
        owners.loc[owners["remote_port"] == 0, ["pod", "local_port"]].itertuples(index=False, name=None)
    )
    connections = tables["connections"]
    columns = zip(connections["pod"], *(connections[name] for name in _ENDS), strict=True)
    is_ours = [
        pod not in shared or tuple(ends) in owned or (pod, ends[1]) in listening for pod, *ends in columns
    ]
    kept = {"connections": connections[np.array(is_ours, dtype=bool)].reset_index(drop=True)}
    ids = set(kept["connections"]["connection"].tolist())
    for name, table in tables.items():
        if name == "connections" or table.empty:
            kept.setdefault(name, table)
        else:
            kept[name] = table[_ours(name, table, ids, owned, listening, shared)].reset_index(drop=True)
            kept[name].attrs = table.attrs
    kept["connections"].attrs = connections.attrs
    return kept


def _both_ways(owners: pd.DataFrame) -> set[tuple[Any, ...]]:
    one_way = set(owners.loc[owners["remote_port"] != 0, list(_ENDS)].itertuples(index=False, name=None))
    return one_way | {(*ends[2:], *ends[:2]) for ends in one_way}


def _ours(
    name: str,
    table: pd.DataFrame,
    ids: set[int],
    owned: set[tuple[Any, ...]],
    listening: set[tuple[str, int]],
    shared: frozenset[str],
) -> list[bool]:
    pods = table["pod"].tolist()
    if name == "drops":
        ports = {port for _, port in listening}
        columns = zip(
            *(table[c].tolist() for c in ("source", "source_port", "target", "target_port", "connection")),
            strict=True,
        )
        return [
            pod not in (*shared, NODE)
            or tuple(ends) in owned
            or connection in ids
            or ends[1] in ports
            or ends[3] in ports
            for pod, (*ends, connection) in zip(pods, columns, strict=True)
        ]
    if name == "dns":
        return [pod not in shared for pod in pods]
    if name == "pairs":
        columns = zip(table["from_connection"].tolist(), table["to_connection"].tolist(), strict=True)
        return [
            pod not in shared or (a in ids and b in ids) for pod, (a, b) in zip(pods, columns, strict=True)
        ]
    if "connection" not in table:
        return [True] * len(table)  # of the participants' own processes alone
    # A state change before a connection's first packet is of none yet; its process tells whose it is.
    processes = table["process"].tolist() if "process" in table else [""] * len(table)
    return [
        pod not in shared or connection in ids or (connection == 0 and process != "")
        for pod, connection, process in zip(pods, table["connection"].tolist(), processes, strict=True)
    ]
