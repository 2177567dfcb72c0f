"""What this node's kernel knows of pods that somebody elsewhere names: where they are, what runs in them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ztprobe.agent.interface import LoadPart, NodeFacts, PlacedPods, PodProcess
from ztprobe.agent.machine_load import MachineLoad
from ztprobe.agent.stall_snapshot import StallLook, look
from ztprobe.errors import PreflightError, ZtprobeError
from ztprobe.events.kinds import NODE
from ztprobe.kernelnet.netns import inode
from ztprobe.pods.cgroup import find_namespaces
from ztprobe.pods.cgroup_path import pod_of_path
from ztprobe.pods.command_line import without_secrets
from ztprobe.pods.model import Pod
from ztprobe.pods.placing import placed
from ztprobe.pods.process_table import ProcessTable
from ztprobe.process.identity import MachineProcess, boot_id
from ztprobe.rundir.clock import take_sample

if TYPE_CHECKING:
    from ztprobe.agent.endpoints import OwnedSocket
    from ztprobe.agent.node_agent import NodeAgent

__all__ = ("ThisNode",)

_MOST_COMMAND = 512


class ThisNode:
    """`ztprobe.agent.interface.NodeView` by this machine's ``/proc``.

    :param agent: watches the pods.
    :param service: the process that hosts it, whose descendants all are ztprobe's; None: this one.
    """

    def __init__(self, agent: NodeAgent, service: int | None = None) -> None:
        self._agent = agent
        self._service = os.getpid() if service is None else service
        self._load: MachineLoad | None = None
        self._table = ProcessTable()
        self.placed: dict[str, Pod] = {}  # all that were found, by name

    def facts(self) -> NodeFacts:
        """See `NodeView`."""
        reasons = {str(number): name for number, name in self._agent.reason_names.items()}
        return NodeFacts(
            kernel=platform.release(),
            machine=platform.machine(),
            cores=os.cpu_count() or 1,
            drop_reasons=reasons,
        )

    def clock(self) -> dict[str, int]:
        """See `NodeView`."""
        sample = take_sample()
        return {"time_monotonic_ns": sample.time_monotonic_ns, "time_unix_ns": sample.time_unix_ns}

    def place(self, pods: Iterable[Pod]) -> PlacedPods:
        """See `NodeView`."""
        seen = find_namespaces()
        found, unseen = [], {}
        for pod in pods:
            try:
                found.append(placed(pod, (pod.uid,), seen))
            except PreflightError:
                unseen[pod.name] = f"{pod}: the agent of node {pod.node} sees none of its processes"
            except ZtprobeError as error:
                unseen[pod.name] = str(error)
        self.placed |= {pod.name: pod for pod in found}
        places: dict[str, str] = {}
        for pod in found:
            with contextlib.suppress(OSError):  # it has no other end here
                places[str(inode(pod.node_netns))] = NODE
        places |= {str(pod.netns_inode): pod.name for pod in found}
        return PlacedPods(pods=found, unseen=unseen, places=places)

    def processes(self, uids: Iterable[str]) -> list[PodProcess]:
        """See `NodeView`."""
        wanted = set(uids)
        self._table.look()
        found = []
        for one in self._table:
            of = {uid for path in one.cgroups if (uid := pod_of_path(path)) is not None}
            if len(of) == 1 and of <= wanted:
                found.append(
                    PodProcess(
                        pid=one.pid,
                        uid=of.pop(),
                        started_ticks=one.started_ticks,
                        program=one.program,
                        command=without_secrets(one.command)[:_MOST_COMMAND],
                    )
                )
        return found

    def sockets(self) -> list[OwnedSocket]:
        """See `NodeView`."""
        return self._agent.sockets()

    def stall_look(self) -> StallLook:
        """See `NodeView`."""
        return look(self._agent.pods, self._agent.running)

    def record_load(self, ours: Iterable[MachineProcess]) -> str:
        """See `NodeView`."""
        if self._load is None:
            there = [one.pid for one in ours if one.is_here]
            self._load = MachineLoad(lambda: self._agent.running, ours=[self._service, *there])
            self._load.__enter__()
        return boot_id()

    def load(self, after: int, *, last: bool = False) -> LoadPart:
        """See `NodeView`."""
        load = self._recorded()
        if last:
            load.stop()
        return LoadPart(rows=load.rows(after), facts=load.facts(), cpu_ns=load.cpu_ns)

    def busiest(self) -> str | None:
        """See `NodeView`."""
        return self._recorded().busiest()

    def _recorded(self) -> MachineLoad:
        if self._load is None:
            raise RuntimeError("record_load() comes first")
        return self._load
