"""A run on several nodes as the job sees it: by the clock of its server's node."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ztprobe.agent.interface import Account, Agent, NodeFacts
from ztprobe.agent.machine_load import LoadRecord
from ztprobe.experiment.nodes.agent import NodesAgent
from ztprobe.experiment.nodes.load import NodesLoad
from ztprobe.experiment.nodes.looks import look_at_nodes
from ztprobe.experiment.nodes.tables import tables_of
from ztprobe.experiment.stall_watch import RunStalls, stalls_of
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.rundir.store import RunDir
from ztprobe.runtime.cluster.agent_nodes import AgentNodes
from ztprobe.runtime.interface import Runtime

if TYPE_CHECKING:
    from ztprobe.experiment.run import Job

__all__ = ("NodesWatching",)

_UNKNOWN = NodeFacts(kernel="", machine="", cores=1, drop_reasons={})


class NodesWatching:
    """`ztprobe.experiment.watching.Watching` by agents.

    A run that goes on is known here alone.

    :param nodes: as the runtime enters them.
    """

    poll_s = 0.25  # each look is a few calls of every agent

    def __init__(self, nodes: AgentNodes) -> None:
        self._nodes = nodes
        self._load = NodesLoad()

    @property
    def clock_samples(self) -> list[dict[str, Any]]:
        """Of the server's node; none before the nodes are entered."""
        return list(self._nodes.server.clock_samples) if self._nodes.sessions else []

    def now_ns(self) -> int:
        """See `Watching`."""
        return self._nodes.server.now_ns

    def sample(self) -> None:
        """See `Watching`; the server's last."""
        for session in reversed(list(self._nodes.sessions.values())):
            if session.account is None:  # else it has told its last
                session.sample()

    def where(self) -> str:
        """See `Watching`."""
        count = len(self._nodes.sessions)
        return f"on {', '.join(self._nodes.sessions)}" if count > 1 else "on one node"

    def agent(self, target: RunDir) -> AbstractContextManager[Agent]:
        """See `Watching`."""
        return contextlib.closing(NodesAgent(self._nodes))

    def load(self, runtime: Runtime) -> AbstractContextManager[LoadRecord]:
        """See `Watching`."""
        self._load = NodesLoad(self._nodes.sessions.values())
        return self._load

    def stalls(self, runtime: Runtime, clients: Iterable[str], after_s: float) -> RunStalls:
        """See `Watching`."""
        sessions = list(self._nodes.sessions.values())
        return stalls_of(
            runtime, clients, lambda: look_at_nodes(sessions), since_s=self.now_ns() / 1e9, after_s=after_s
        )

    def tell(self, job: Job, runtime: Runtime, hooks: Mapping[str, str], load: LoadRecord) -> None:
        """See `Watching`; what agents have recorded is had before one of them may end."""
        self._load.renew()

    def owners(self, runtime: Runtime, processes: Mapping[int, str]) -> dict[str, Any]:
        """See `Watching`; each node's session knows its own."""
        return {}

    def save(self, target: RunDir, account: Account, owners: Mapping[str, Any]) -> dict[str, int]:
        """See `Watching`."""
        rows = {}
        for name, table in tables_of(list(self._nodes.sessions.values())).items():
            target.write_events(name, table)
            rows[name] = len(table)
        shutil.rmtree(target.path / BATCHES_DIR, ignore_errors=True)
        return rows

    def described(self, pods: Iterable[str]) -> dict[str, Any]:
        """See `Watching`; kernel and machine are the server's node's."""
        sessions = list(self._nodes.sessions.values())
        facts = sessions[0].facts or _UNKNOWN
        return {
            "kernel": facts.kernel,
            "machine": facts.machine,
            "cores": sum(one.facts.cores for one in sessions if one.facts is not None),
            "clock_samples": sessions[0].clock_samples,
            "nodes": [
                {"name": one.name, "pods": list(one.pods), "clock_samples": one.clock_samples}
                for one in sessions
            ],
        }
