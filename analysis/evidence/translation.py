"""Connections whose target's address was translated on the way, as a Service's is, made one again.

A client says that it talks to an address that no pod has; the server's pod says that the client's own
address and port talk to it. Both have seen the same connection: nothing else has that address and port at
the client's end at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pandas as pd

from analysis.evidence.values import Endpoint

__all__ = ("untranslated",)

_COLUMNS = ("local", "local_port", "remote", "remote_port")


def untranslated(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables with the server's own address wherever a client has another in its place.

    What more than one end answers for is left as it stands.

    :param tables: ``connections``; ``owners`` where it is there.
    """
    ends = [
        (Endpoint(local, local_port), Endpoint(remote, remote_port))
        for local, local_port, remote, remote_port in _rows(tables["connections"])
    ]
    known, addresses = set(ends), {local.address for local, _ in ends}
    answering: dict[Endpoint, set[Endpoint]] = defaultdict(set)  # a client's end -> who says to talk to it
    for local, remote in ends:
        if (remote, local) not in known:
            answering[remote].add(local)
    found = {
        (local, remote): min(answering[local])
        for local, remote in known
        if remote.address not in addresses and len(answering.get(local, ())) == 1
    }
    if not found:
        return dict(tables)
    return {
        name: _renamed(table, found) if name in ("connections", "owners") else table
        for name, table in tables.items()
    }


def _rows(table: pd.DataFrame) -> list[tuple[str, int, str, int]]:
    return list(zip(*(table[name].tolist() for name in _COLUMNS), strict=True))


def _renamed(table: pd.DataFrame, found: Mapping[tuple[Endpoint, Endpoint], Endpoint]) -> pd.DataFrame:
    remotes = [
        found.get((Endpoint(local, local_port), remote := Endpoint(address, port)), remote)
        for local, local_port, address, port in _rows(table)
    ]
    return table.assign(
        remote=[remote.address for remote in remotes], remote_port=[remote.port for remote in remotes]
    )
