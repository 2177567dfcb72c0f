"""What else a run's nodes did, by their agents' records: `ztprobe.agent.machine_load` of several machines.

The table has a column ``node`` besides, and rows of each node; times are told by the server's node's clock.
Nodes that share a kernel (containers that pose as nodes) have one record: what one agent watches is foreign
to the other, so what is the deployment's or ztprobe's by any of them is taken from what tasks ran, and each
of them has the rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ztprobe.agent.machine_load import GROWING, foreign_share, load_table
from ztprobe.agent.service.node_session import NodeSession
from ztprobe.errors import ZtprobeError
from ztprobe.experiment.nodes.tables import server_time_ns
from ztprobe.process.identity import MachineProcess

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("NodesLoad", "joined")

_RENEW_S = 0.2
_KNOWN_BY_ONE = ("deployment_ns", "ztprobe_ns")  # of nodes that share a kernel


@dataclass
class _NodeLoad:
    """One node's record, as far as it has come."""

    session: NodeSession
    boot_id: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    cpu_ns: int = 0
    problem: str | None = None

    def renew(self, *, last: bool = False) -> None:
        """Have what has been recorded since; that an agent is gone ends its record, and no run."""
        if self.problem is not None:
            return
        if self.session.is_lost:
            self.problem = "the agent has ended"
            return
        try:
            part = self.session.client.load(len(self.rows), last=last)
        except ZtprobeError as error:
            self.problem = str(error)
            return
        self.rows += part.rows
        self.facts, self.cpu_ns = part.facts, part.cpu_ns


class NodesLoad:
    """`ztprobe.agent.machine_load.LoadRecord` of several nodes; a context manager.

    :param sessions: of the nodes, as it is entered; the server's first.
    """

    def __init__(self, sessions: Iterable[NodeSession] = ()) -> None:
        self._sessions = sessions
        self._nodes: list[_NodeLoad] = []
        self._own: MachineProcess | None = MachineProcess.own()  # None: an agent knows of this command
        self._renewed_s = 0.0
        self._is_over = False
        self._busiest: _NodeLoad | None = None

    def __enter__(self) -> Self:
        for session in self._sessions:
            self.add(session)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True  # recording ends with the sessions, which may have been closed

    def add(self, session: NodeSession) -> None:
        """Record this node, too. :raises ZtprobeError: its agent cannot."""
        boot_id = session.client.record_load([] if self._own is None else [self._own])
        if self._own is not None and boot_id == self._own.boot_id:
            self._own = None  # of two under one kernel, one alone has to count it
        self._nodes.append(_NodeLoad(session, boot_id))

    @property
    def problem(self) -> str | None:
        """See `LoadRecord`."""
        found = [(one, one.problem or one.facts.get("problem")) for one in self._nodes]
        return next((one.session.named(str(why)) for one, why in found if why is not None), None)

    @property
    def cpu_ns(self) -> int:
        """See `LoadRecord`."""
        return sum(one.cpu_ns for one in self._nodes)

    @property
    def where(self) -> str:
        """See `LoadRecord`."""
        return "a node" if self._busiest is None else f"node {self._busiest.session.name}"

    def renew(self, *, last: bool = False) -> None:
        """Have what agents have recorded since."""
        for one in self._nodes:
            one.renew(last=last)
        self._renewed_s = time.monotonic()

    def foreign_share(self, window_s: float) -> float | None:
        """See `LoadRecord`; of the node that others use most."""
        if time.monotonic() - self._renewed_s > _RENEW_S:
            self.renew()
        found = []
        for nodes in self._kernels():
            rows = joined([one.rows for one in nodes])
            if not rows:
                return None
            recent = [row for row in rows if row["to_ns"] > rows[-1]["to_ns"] - window_s * 1e9]
            found.append((foreign_share(recent, nodes[0].facts["cpus"]) or 0.0, nodes[0]))
        share, self._busiest = max(found, key=lambda one: one[0])
        return share

    def busiest(self) -> str | None:
        """See `LoadRecord`."""
        if self._busiest is None:
            return None
        try:
            return self._busiest.session.client.busiest()
        except ZtprobeError:  # who says so is the next who asks it
            return None

    def table(self) -> pd.DataFrame:
        """See the module."""
        import pandas as pd

        rows = {
            one.session.name: joined([each.rows for each in nodes])
            for nodes in self._kernels()
            for one in nodes
        }
        parts = [load_table([]).assign(node="")]
        for one in self._nodes:
            server = self._nodes[0]
            table = load_table(rows[one.session.name])
            if one.boot_id != server.boot_id:
                clocks = one.session.clock, server.session.clock
                told = {
                    name: [server_time_ns(at_ns, *clocks) for at_ns in table[name].tolist()]
                    for name in ("from_ns", "to_ns")
                }
                table = table.assign(**told)
                table = table[table["to_ns"] > table["from_ns"]]  # unless a wall clock was set back
            parts.append(table.assign(node=one.session.name))
        return pd.concat(parts, ignore_index=True)

    def facts(self) -> dict[str, Any]:
        """See `LoadRecord`; the server's node's, and ``nodes``: each one's."""
        nodes = []
        for one in self._nodes:
            others = [
                each.session.name for each in self._nodes if each is not one and each.boot_id == one.boot_id
            ]
            found = {**one.facts, "problem": one.problem or one.facts.get("problem")}
            nodes.append({"node": one.session.name, **found, "same_kernel_as": others})
        return {**self._nodes[0].facts, "problem": self.problem, "nodes": nodes}

    def stop(self) -> None:
        """See `LoadRecord`."""
        if not self._is_over:
            self._is_over = True
            self.renew(last=True)

    def _kernels(self) -> list[list[_NodeLoad]]:
        found: dict[str, list[_NodeLoad]] = {}
        for one in self._nodes:
            found.setdefault(one.boot_id, []).append(one)
        return list(found.values())


def joined(records: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What agents under one kernel have recorded, as one record: the first one's rows.

    What another knows is its own is taken to be even over each of its intervals, and so is all of a row that
    is cut: before all of them recorded, and after one has ended, nobody knows what was foreign.
    """
    first, *others = records
    if not others:
        return list(first)
    if not all(records):
        return []
    begin_ns = max(rows[0]["from_ns"] for rows in records)
    end_ns = min(rows[-1]["to_ns"] for rows in records)
    found = [
        _cut(row, max(row["from_ns"], begin_ns), min(row["to_ns"], end_ns))
        for row in first
        if row["to_ns"] > begin_ns and row["from_ns"] < end_ns
    ]
    edges = np.array([[row["from_ns"], row["to_ns"]] for row in found], dtype=np.int64).reshape(-1, 2)
    for rows in others:
        times = np.array([rows[0]["from_ns"], *(row["to_ns"] for row in rows)])
        for name in _KNOWN_BY_ONE:
            so_far = np.cumsum([0, *(row[name] for row in rows)])
            spent = np.rint(np.diff(np.interp(edges, times, so_far), axis=1)[:, 0])
            for row, more in zip(found, spent.tolist(), strict=True):
                row[name] += int(more)
                row["foreign_ns"] -= int(more)
    return found


def _cut(row: dict[str, Any], from_ns: int, to_ns: int) -> dict[str, Any]:
    if (from_ns, to_ns) == (row["from_ns"], row["to_ns"]):
        return dict(row)
    part = (to_ns - from_ns) / (row["to_ns"] - row["from_ns"])
    grown = {name: None if row[name] is None else round(row[name] * part) for name in GROWING}
    found = {**row, **grown, "from_ns": from_ns, "to_ns": to_ns}
    known_ns = sum(found[name] for name in ("deployment_ns", "ztprobe_ns", "kernel_ns"))
    return {**found, "foreign_ns": found["tasks_ns"] - known_ns}
