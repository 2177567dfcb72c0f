"""Processes by number and time, and whose they were.

A participant has the processes that run.json names, and what those started later, whether it was ever named
or not: a task's process may be gone before anybody looks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

__all__ = ("Load", "Participant", "Process", "Processes", "rows_of")


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """A checked table's rows; their columns are attributes of the types that they were checked for."""
    yield from table.itertuples(index=False)


class Load(NamedTuple):
    """A stretch of time in which a process opened files that hold code."""

    first_ns: int
    last_ns: int
    own_ns: int  # the last that was the program's own and no library's; 0: none


@dataclass(frozen=True, kw_only=True)
class Participant:
    """One target of the attachment."""

    name: str
    role: str  # server | hub | client, as it was declared


@dataclass(frozen=True)
class Process:
    """One process, from its start to its end: numbers come again."""

    pid: int
    forked_ns: int = 0  # 0: older than the trace
    parent: int = 0
    participant: str = ""  # empty: nobody's

    @property
    def is_watched(self) -> bool:
        """Whether it is on a machine where its own side was seen."""
        return self.pid != 0


class Processes:
    """Who had a number at a moment."""

    def __init__(
        self, attachment: Mapping[str, Any], starts: pd.DataFrame, loads: pd.DataFrame | None = None
    ) -> None:
        self.participants = {
            one["name"]: Participant(name=one["name"], role=one["role"]) for one in attachment["participants"]
        }
        # By address: those on machines where nobody watched.
        self._elsewhere = {
            one["address"]: Process(0, participant=one["name"])
            for one in attachment["participants"]
            if one.get("address") and not one.get("netns_inode")
        }
        named = {
            process["pid"]: one["name"]
            for one in attachment["participants"]
            for process in one.get("processes", ())
        }
        self._by_pid: dict[int, list[Process]] = defaultdict(list)
        for pid, name in named.items():
            self._by_pid[pid].append(Process(pid, participant=name))
        forks = starts[starts["how"] == "fork"] if len(starts) else starts
        for row in rows_of(forks):
            parent = self.at(row.parent, row.ts_ns)
            owner = parent.participant or named.get(row.tgid, "")
            known = self._by_pid[row.tgid]
            if known and known[-1].forked_ns == 0 and not parent.participant:
                continue
            # One that run.json names and that was seen to start is the same.
            if len(known) == 1 and known[0].forked_ns == 0 and named.get(row.tgid) == owner:
                known.clear()
            known.append(Process(row.tgid, row.ts_ns, row.parent, owner))

        self._loads: dict[int, list[Load]] = defaultdict(list)
        if loads is not None:
            for row in rows_of(loads):
                self._loads[row.tgid].append(Load(row.first_ns, row.last_ns, row.own_ns))

    def elsewhere(self, address: str) -> Process | None:
        """What speaks from an address of a machine where nobody watched: one process for all that there may
        be."""
        return self._elsewhere.get(address)

    def loading(self, process: Process, until_ns: int) -> list[Load]:
        """When it loaded code, from its start to a moment."""
        return [
            load
            for load in sorted(self._loads.get(process.pid, ()))
            if load.last_ns >= process.forked_ns and load.first_ns < until_ns
        ]

    def at(self, pid: int, when_ns: int) -> Process:
        """The process that had this number then."""
        known = self._by_pid.get(pid)
        if not known:
            return Process(pid)
        return known[max(0, bisect_right(known, when_ns, key=lambda one: one.forked_ns) - 1)]
