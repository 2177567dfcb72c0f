"""Which rows of the connection table are one connection, and which connection addresses and ports meant when.

Two rows with the same addresses and ports are the same connection if their SYN had the same sequence number.
A row without a SYN (older than the trace, or the SYN was lost) belongs to the last that had begun by then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.evidence.values import Endpoint, Key, LoKey, Wire, wire_between

__all__ = ("Connections",)

_LOOPBACK = ("127.", "::1")


class Connections:
    """The connection table: identity -> key, and who had addresses and ports at a moment."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.key_of: dict[int, Key] = {}
        self._begun: dict[tuple[Endpoint, Endpoint], list[tuple[int, Wire]]] = defaultdict(list)
        alike: dict[Key, list[Any]] = defaultdict(list)
        for row in table.itertuples(index=False):
            alike[_alike(row)].append(row)
        for first, rows in alike.items():
            for begun_ns, number, row in _numbered(rows):
                key = first._replace(number=number)
                self.key_of[row.connection] = key
                if isinstance(key, Wire):
                    self._begun[key.one, key.other].append((begun_ns, key))
        for begun in self._begun.values():
            begun.sort()

    def wire_at(self, source: Endpoint, target: Endpoint, when_ns: int) -> Wire | None:
        """The connection between two ends that had begun last by then, or else the first that did."""
        begun = self._begun.get(wire_between(source, target)[:2])
        if not begun:
            return None
        return begun[max(0, bisect_right(begun, when_ns, key=lambda entry: entry[0]) - 1)][1]


def _alike(row: Any) -> Key:
    """The first connection's key of those that have a row's addresses and ports."""
    if row.local.startswith(_LOOPBACK):
        low_port, high_port = sorted((row.local_port, row.remote_port))
        return LoKey(row.pod, low_port, high_port)
    return wire_between(Endpoint(row.local, row.local_port), Endpoint(row.remote, row.remote_port))


def _numbered(rows: Sequence[Any]) -> Iterator[tuple[int, int, Any]]:
    """(when its connection began, that connection's number, row), of rows with one pair of ends."""
    begun: dict[int, int] = {}  # first sequence number -> when
    for row in rows:
        if row.opened_ns:
            begun[row.first_seq] = min(begun.get(row.first_seq, row.opened_ns), row.opened_ns)
    starts = sorted(begun.values())
    # What was there before the first SYN is a connection of its own.
    older = [row for row in rows if not row.opened_ns and bisect_right(starts, row.ts_ns) == 0]
    starts = [min(row.ts_ns for row in older), *starts] if older else starts
    for row in rows:
        number = bisect_right(starts, begun[row.first_seq] if row.opened_ns else row.ts_ns) - 1
        yield starts[number], number, row
