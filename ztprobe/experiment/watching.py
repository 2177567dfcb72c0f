"""What a run is seen by: this machine, or the agents of its pods' nodes (`ztprobe.experiment.nodes`)."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from ztprobe.agent.interface import Account, Agent
from ztprobe.agent.machine_load import LoadRecord, MachineLoad
from ztprobe.agent.stall_snapshot import look
from ztprobe.experiment.live_state import publish_so_far
from ztprobe.experiment.record import owners_of, save_events
from ztprobe.experiment.stall_watch import RunStalls, processes_of, stalls_of, workload_pods
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.rundir.clock import take_sample
from ztprobe.rundir.store import RunDir
from ztprobe.runtime.interface import Runtime

if TYPE_CHECKING:
    from ztprobe.experiment.run import Job
    from ztprobe.experiment.spec import RunSpec
    from ztprobe.runtime.cluster.agent_nodes import AgentNodes

__all__ = ("ThisMachine", "Watching", "watching_of")


class Watching(Protocol):
    """See the module. Instants are of the clock that the server's events carry."""

    @property
    def clock_samples(self) -> list[dict[str, Any]]:
        """So far."""
        ...

    @property
    def poll_s(self) -> float:
        """How often rounds are looked at."""
        ...

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        ...

    def sample(self) -> None:
        """Read the clocks."""
        ...

    def where(self) -> str:
        """Where the pods are, for people."""
        ...

    def agent(self, target: RunDir) -> AbstractContextManager[Agent]:
        """Begin the agent, which leaves its events in the run directory."""
        ...

    def load(self, runtime: Runtime) -> AbstractContextManager[LoadRecord]:
        """Record what else goes on."""
        ...

    def stalls(self, runtime: Runtime, clients: Iterable[str], after_s: float) -> RunStalls:
        """Notice that nothing goes on."""
        ...

    def tell(self, job: Job, runtime: Runtime, hooks: Mapping[str, str], load: LoadRecord) -> None:
        """Let others know how the run stands."""
        ...

    def owners(self, runtime: Runtime, processes: Mapping[int, str]) -> dict[str, Any]:
        """What numbers in events stand for, as long as pods are there."""
        ...

    def save(self, target: RunDir, account: Account, owners: Mapping[str, Any]) -> dict[str, int]:
        """Turn what was seen into the run's tables. :returns: rows of each."""
        ...

    def described(self, pods: Iterable[str]) -> dict[str, Any]:
        """The machines, for run.json."""
        ...


class ThisMachine:
    """`Watching` by a process of this machine.

    :param agent: begins it.
    :param cpus: that the run has for itself; None: all.
    """

    poll_s = 0.1

    def __init__(
        self,
        agent: Callable[[RunDir], AbstractContextManager[Agent]],
        cpus: Sequence[int] | None = None,
    ) -> None:
        self._agent, self._cpus = agent, cpus
        self.clock_samples: list[dict[str, Any]] = []

    def now_ns(self) -> int:
        """See `Watching`."""
        return time.monotonic_ns()

    def sample(self) -> None:
        """See `Watching`."""
        self.clock_samples.append(dataclasses.asdict(take_sample()))

    def where(self) -> str:
        """See `Watching`."""
        return "on one node"

    def agent(self, target: RunDir) -> AbstractContextManager[Agent]:
        """See `Watching`."""
        return self._agent(target)

    def load(self, runtime: Runtime) -> AbstractContextManager[LoadRecord]:
        """See `Watching`."""
        return MachineLoad(lambda: processes_of(runtime), cpus=self._cpus)

    def stalls(self, runtime: Runtime, clients: Iterable[str], after_s: float) -> RunStalls:
        """See `Watching`."""
        return stalls_of(
            runtime,
            clients,
            lambda: look(workload_pods(runtime), processes_of(runtime)),
            since_s=time.monotonic(),
            after_s=after_s,
        )

    def tell(self, job: Job, runtime: Runtime, hooks: Mapping[str, str], load: LoadRecord) -> None:
        """See `Watching`."""
        publish_so_far(job, runtime, hooks, load.table())

    def owners(self, runtime: Runtime, processes: Mapping[int, str]) -> dict[str, Any]:
        """See `Watching`."""
        return owners_of(runtime.pods, processes)

    def save(self, target: RunDir, account: Account, owners: Mapping[str, Any]) -> dict[str, int]:
        """See `Watching`."""
        return save_events(target, account, owners)

    def described(self, pods: Iterable[str]) -> dict[str, Any]:
        """See `Watching`: all pods are on the node whose clock events carry."""
        node = {"name": platform.node(), "pods": list(pods), "clock_samples": self.clock_samples}
        return {"clock_samples": self.clock_samples, "nodes": [node]}


def watching_of(
    spec: RunSpec, run_id: str, target: RunDir, agent: Callable[[RunDir], AbstractContextManager[Agent]]
) -> tuple[Watching, AgentNodes | None]:
    """By what a run is to be seen, and the nodes that its pods may be on; None: this machine.

    :param agent: begins a process of this machine.
    """
    if spec.place is None or spec.place.agents is None:
        return ThisMachine(agent, None if spec.own_cores is None else spec.own_cores.cpus), None
    from ztprobe.emulation.backends import only_rate
    from ztprobe.experiment.nodes.watching import NodesWatching
    from ztprobe.runtime.cluster.agent_nodes import AgentNodes

    nodes = AgentNodes(
        spec.place.agents,
        target.path / BATCHES_DIR,
        run=run_id,
        attached=spec.sees_turns,
        delays=None if only_rate(spec.profile) else spec.profile.name,
    )
    return NodesWatching(nodes), nodes
