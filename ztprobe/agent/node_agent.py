"""Everything that touches a node, as one unit: probes, and the network profile on its pods.

The local runtime starts one agent for its machine; a DaemonSet can host the same
class on every node. It is told about pods (`ztprobe.runtime.interface.Pod`) and
processes, and hands back tables and an account of its own cost.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.clsact import EGRESS, INGRESS
from ztprobe.kernelnet.drift import DriftMonitor, PodDevice, Standing
from ztprobe.kernelnet.netns import inode
from ztprobe.kernelnet.rtnetlink import Links, attributes
from ztprobe.probes.collector import Collector, coverage
from ztprobe.probes.kernel import KernelProbes
from ztprobe.runtime.interface import Pod

__all__ = ("Agent", "Observation")

_TCA_BPF_NAME = 7


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the probes saw, and what seeing it cost."""

    tables: dict[str, pd.DataFrame]
    hooks: dict[str, str]
    probes: list[dict[str, Any]]
    loss: dict[str, int]
    # when: from_ns, to_ns (CLOCK_MONOTONIC), channel, count
    loss_log: list[dict[str, Any]]
    coverage: float
    events_seen: int
    events_unread: int
    reader_cpu_ns: int


class Agent:
    """prepare -> attach -> watch -> stop; a context manager that always detaches.

    :param statistics: have the kernel count runs and run time of every program (costs a little).
    """

    def __init__(self, *, statistics: bool = True) -> None:
        self._statistics = statistics
        self._kernel = KernelProbes()
        self._collector: Collector | None = None
        self._watch: DriftMonitor | None = None
        self._names: dict[Path, str] = {}
        self._processes: dict[int, tuple[str, str]] = {}
        self.hooks: dict[str, str] = {}

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Compile and load; takes about a second and needs no pods yet."""
        self._kernel.load()

    def attach(self, pods: Sequence[Pod], node_netns: Path) -> dict[str, str]:
        """Trace these pods from now on. :returns: signal -> hook in use."""
        for pod in pods:
            self._kernel.trace_netns(pod.netns_inode)
        self._kernel.trace_netns(inode(node_netns), node=True)
        self.hooks = self._kernel.attach()
        if self._statistics:
            self._kernel.enable_stats()
        for pod in pods:
            self._kernel.attach_interface(pod.netns, pod.interface)
        if filters := self._kernel.clsact_programs():
            devices = [
                PodDevice(pod=pod.name, netns=pod.netns, name=name)
                for pod in pods
                for name in (pod.interface, "lo")
            ]
            self._watch = DriftMonitor(devices, functools.partial(_standing, filters))
        self._names = {pod.netns: pod.name for pod in pods}
        names = {pod.netns_inode: pod.name for pod in pods}
        names[inode(node_netns)] = "node"
        self._collector = Collector(self._kernel, names)
        self._collector.start()
        return self.hooks

    def check(self) -> None:
        """:raises EnforcementError: somebody else has taken probes off a pod's interfaces."""
        problem = self._watch.problem() if self._watch is not None else None
        for netns, device, program in self._kernel.missing_programs():
            pod = self._names.get(netns, netns.name)
            problem = f"the probe {program} on {device} of {pod} has been removed by somebody else"
        if problem is not None:
            raise EnforcementError(f"not all that happens is seen any more: {problem}")

    def watch(self, processes: dict[int, tuple[str, str]]) -> None:
        """Trace reads, writes and CPU waits of these processes; call again as they come.

        :param processes: pid -> (pod, container).
        """
        for pid, (pod, container) in processes.items():
            if self._processes.get(pid) != (pod, container):
                self._kernel.trace_process(pid, proxy=container == "proxy")
                self._processes[pid] = (pod, container)

    def stop(self) -> Observation:
        """Stop watching and hand over what was seen."""
        if self._collector is None:
            raise RuntimeError("stop before attach")
        self._collector.stop()
        owners = {pid: f"{pod}/{container}" for pid, (pod, container) in self._processes.items()}
        tables = self._collector.tables(owners)
        loss = self._collector.loss()
        seen = self._collector.events_seen
        return Observation(
            tables=tables,
            hooks=self.hooks,
            probes=[cost.as_dict() for cost in self._kernel.read_costs()],
            loss=loss,
            loss_log=self._collector.loss_log,
            coverage=coverage(seen, loss, unread=self._collector.events_unread),
            events_seen=seen,
            events_unread=self._collector.events_unread,
            reader_cpu_ns=self._collector.cpu_ns,
        )

    def close(self) -> None:
        """Detach everything; idempotent."""
        if self._watch is not None:
            self._watch.close()
        if self._collector is not None:
            self._collector.stop()
        self._kernel.close()


def _standing(programs: Set[str], there: Links, index: int) -> Standing:
    found = {}
    for parent in (INGRESS, EGRESS):
        for each in there.described("filter", index, parent):
            name = attributes(each.options).get(_TCA_BPF_NAME, b"").rstrip(b"\0").decode()
            if name in programs:
                found[f"probe {name}"] = f"{each.handle} {each.options.hex()}"
    return found
