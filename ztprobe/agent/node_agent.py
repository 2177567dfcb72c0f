"""The node agent: probes, and the network profile on the node's pods, as one unit.

It is told about pods and processes as they come and go. A pod is traced before its interfaces are,
and every process from the moment at which it is named, so that what a late pod does is seen as
completely as what the first ones do. Events leave for the sink while it runs; nothing that is held
here grows with the length of a run.

An inode of a network namespace and a process's number come back for something else one day. The sink
is told so just before they do: what it was given until then goes by the old names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from ztprobe.agent import memory
from ztprobe.agent.counts import Counts
from ztprobe.agent.emulator import Emulator
from ztprobe.agent.endpoints import OwnedSocket, pod_sockets, topology
from ztprobe.agent.interface import Account, Measurement, Status
from ztprobe.agent.observed_qdiscs import ObservedQdiscs
from ztprobe.agent.pod_counters import PodCounters
from ztprobe.agent.sinks import Owners, Sink
from ztprobe.agent.tally import EventTally
from ztprobe.conformance.judgement import requested
from ztprobe.errors import EnforcementError
from ztprobe.events.kinds import NODE
from ztprobe.kernelnet.clsact import EGRESS, INGRESS
from ztprobe.kernelnet.drift import DeviceState, DriftMonitor, PodDevice
from ztprobe.kernelnet.netlink import netlink
from ztprobe.kernelnet.netns import inode
from ztprobe.kernelnet.rtnetlink import Links, attributes
from ztprobe.kernelnet.sockets import SocketTables
from ztprobe.pods.model import NOWHERE, Pod
from ztprobe.pods.source import Processes
from ztprobe.probes.collector import Collector, coverage
from ztprobe.probes.kallsyms import Kallsyms
from ztprobe.probes.kernel import KernelProbes
from ztprobe.profile.model import Profile

__all__ = ("NodeAgent",)

_TCA_BPF_NAME = 7


class NodeAgent:
    """`ztprobe.agent.interface.Agent` in this process; a context manager that always undoes.

    :param sink: takes the events; None: they are kept, for `Collector.tables`.
    :param state_dir: where a delay line keeps its configuration and counters.
    :param probes: False: see nothing, only emulate.
    :param attached: of a deployment that ran already: see turns and process starts besides.
    :param counted: count what goes to the sink, for `tally`.
    """

    def __init__(
        self,
        sink: Sink | None = None,
        *,
        state_dir: Path = NOWHERE,
        probes: bool = True,
        attached: bool = False,
        counted: bool = False,
    ) -> None:
        self._sink = sink
        self._state_dir = state_dir
        self._kernel = KernelProbes(attached=attached) if probes else None
        self._attached = attached
        self._gone: set[tuple[Path, str]] = set()  # devices of namespaces that others take down as they like
        self._pods: dict[str, Pod] = {}
        self._owners = Owners()
        self._running: Processes = {}
        self.collector: Collector | None = None
        self._drift: DriftMonitor | None = None
        self._problem: str | None = None
        self._memory: dict[str, int] = {}
        self._hooks: dict[str, str] = {}
        self._emulator: Emulator | None = None
        self._notes: list[str] = []
        self._counters = PodCounters()
        self._sockets = SocketTables()
        self._tally = EventTally() if counted else None
        self._qdiscs = ObservedQdiscs()
        self._ended = False  # the sink has been told that that was all

    def __enter__(self) -> NodeAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """See `Agent`."""
        if self._kernel is not None:
            self._kernel.load()

    def add_pod(self, pod: Pod) -> None:
        """See `Agent`."""
        node = inode(pod.node_netns)
        self._pods[pod.name] = pod
        self._qdiscs.add(pod)
        # What runs in the node's own namespace, without one of its own, has that as its pod.
        is_pod = node in {one.netns_inode for one in self._pods.values()}
        self._name(self._owners.pods, {pod.netns_inode: pod.name} | ({} if is_pod else {node: NODE}))
        if self._kernel is None:
            return
        self._kernel.trace_netns(node, node=not is_pod)
        self._kernel.trace_netns(pod.netns_inode)
        if self.collector is not None:
            self.collector.know(self._owners.pods)
            self._watch_interfaces([pod])

    def remove_pod(self, pod: Pod) -> None:
        """See `Agent`."""
        known = self._pods.pop(pod.name, None)
        if known is None:
            return
        self._qdiscs.leave(known)
        if self._emulator is not None:
            self._emulator.release(known)
        if self._kernel is None:
            return
        if self.collector is not None:
            self._look_at_probes()
            self._kernel.detach_interface(known.netns)
        self._kernel.forget_netns(known.netns_inode)
        if self.collector is not None:
            self._renew_drift()

    def watch(self, processes: Processes) -> None:
        """See `Agent`."""
        gone, before = self._running.keys() - processes.keys(), self._running
        self._running = dict(processes)
        self._counters.remember(processes)
        if self._kernel is None:
            return
        self._name(self._owners.processes, {pid: f"{pod}/{name}" for pid, (pod, name) in processes.items()})
        for pid in gone:
            self._kernel.forget_process(pid)
        for pid, who in processes.items():
            if before.get(pid) != who:
                self._kernel.trace_process(pid, proxy=who[1] == "proxy")

    def _name(self, names: dict[int, str], new: Mapping[int, str]) -> None:
        taken = any(names.get(number, name) != name for number, name in new.items())
        if taken and self._sink is not None and self.collector is not None:
            with self.collector.drained():
                self._sink.change_owners(self._owners)
                names.update(new)
        else:
            names.update(new)

    def start(self) -> dict[str, str]:
        """See `Agent`."""
        if self._kernel is None:
            return {}
        self._hooks = self._kernel.attach()
        self._kernel.enable_stats()
        write = self._take if self._sink is not None else None
        self.collector = Collector(self._kernel, self._owners.pods, write)
        self._watch_interfaces(list(self._pods.values()))
        self.collector.start()
        memory.trim()  # loading and attaching took more than watching does
        self._memory = {f"first_{name}": value for name, value in memory.held().items()}
        return self._hooks

    def _take(self, ring: str, rows: np.ndarray) -> None:
        assert self._kernel is not None
        assert self._sink is not None
        if self._tally is not None:
            self._tally.count(ring, rows, self._owners.pods, self._kernel.reason_names)
        self._sink.write(ring, rows)

    def _watch_interfaces(self, pods: Sequence[Pod]) -> None:
        assert self._kernel is not None
        for pod in pods:
            self._kernel.attach_interface(pod.netns, *pod.interfaces)
        self._renew_drift()

    def _renew_drift(self) -> None:
        """Filters are watched by what the kernel tells of changes; where there is tcx, links are asked."""
        assert self._kernel is not None
        filters = self._kernel.clsact_programs()
        if self._drift is not None:
            self._problem = self._problem or self._drift.problem()
            self._drift.close()
            self._drift = None
        if filters and self._pods:
            devices = [
                PodDevice(pod=pod.name, netns=pod.netns, name=name)
                for pod in self._pods.values()
                for name in (*pod.interfaces, "lo")
            ]
            self._drift = DriftMonitor(devices, functools.partial(_standing, filters))

    def _look_at_probes(self) -> None:
        if self._kernel is None or self._problem is not None:
            return
        if self.collector is not None and self.collector.failure is not None:
            self._problem = f"the events cannot be kept any more: {self.collector.failure}"
            return
        problem = self._drift.problem() if self._drift is not None else None
        for netns, device, program in self._kernel.missing_programs():
            pod = next((pod.name for pod in self._pods.values() if pod.netns == netns), netns.name)
            if self._attached and self._is_gone(netns, device):
                if (netns, device) not in self._gone:
                    self._gone.add((netns, device))
                    if any(one.netns == netns for one in self._pods.values()):  # it is not being left
                        self._notes.append(f"{device} of {pod} is gone")
                continue
            problem = f"the probe {program} on {device} of {pod} has been removed by somebody else"
        if problem is not None:
            self._problem = f"not all that happens is seen any more: {problem}"

    def _is_gone(self, netns: Path, device: str) -> bool:
        if (netns, device) in self._gone:
            return True
        try:
            with netlink(netns) as ipr:
                return not ipr.link_lookup(ifname=device)
        except OSError:
            return True

    def apply(self, profile: Profile, *, seed: int) -> str:
        """See `Agent`."""
        pods = list(self._pods.values())
        self._emulator = Emulator(profile, pods, pods[0].node_netns, self._state_dir, seed)
        self._emulator.apply()
        return self._emulator.backend

    def measure(self, server: str, clients: Sequence[str]) -> Measurement:
        """See `Agent`."""
        emulator = self._applied()
        measured = emulator.measure(self._pods[server], [self._pods[name] for name in clients])
        return Measurement(
            backend=emulator.backend,
            requested=requested(emulator.profile),
            measured=measured.as_dict(),
            details=measured.details(),
            summary=measured.summary(),
            problems=measured.problems(emulator.profile.steps[0]),
        )

    def follow(self) -> None:
        """See `Agent`."""
        self._applied().follow(self._notes.append)

    def _applied(self) -> Emulator:
        if self._emulator is None:
            raise RuntimeError("apply() comes first")
        return self._emulator

    def status(self) -> Status:
        """See `Agent`."""
        problem = None
        if self._emulator is not None:
            try:
                self._emulator.check()
            except EnforcementError as error:
                problem = str(error)
        self._look_at_probes()
        notes = self._notes[:]
        del self._notes[: len(notes)]
        return Status(problem=problem or self._problem, notes=notes)

    def topology(self) -> dict[str, Any]:
        """See `Agent`."""
        return topology(list(self._pods.values()), self.sockets())

    def sockets(self) -> list[OwnedSocket]:
        """The TCP sockets of the processes that are watched."""
        return pod_sockets(list(self._pods.values()), self._running, self._sockets)

    @property
    def pods(self) -> list[Pod]:
        """Those that are watched."""
        return list(self._pods.values())

    @property
    def running(self) -> Processes:
        """The processes that are watched."""
        return self._running

    @property
    def reason_names(self) -> dict[int, str]:
        """This kernel's reasons for dropping a packet, by their numbers; none without probes."""
        return dict(self._kernel.reason_names) if self._kernel is not None else {}

    def counters(self) -> dict[str, Any]:
        """See `Agent`."""
        return self._counters.sample(self._pods.values(), self._running)

    def tally(self) -> Counts:
        """See `Agent`."""
        counts = self._tally.counts() if self._tally is not None else {}
        if self.collector is not None:
            counts["lost"] = dict(self.collector.loss())
        return counts

    def stop(self) -> Account:
        """See `Agent`."""
        counted: dict[str, Any] = {}
        problem = None
        if self._emulator is not None:
            try:
                counted = self._emulator.stats()
                self._emulator.check()  # by these counters, which know of the last second too
            except EnforcementError as error:
                problem = str(error)
        seen = self._stop_probes() if self.collector is not None else {}
        observed = self._qdiscs.read()
        schedule = None
        if self._emulator is not None:
            self._emulator.clear()
            schedule = self._emulator.schedule_record()
        return Account(emulation=counted, observed=observed, schedule=schedule, problem=problem, **seen)

    def _stop_probes(self) -> dict[str, Any]:
        collector, kernel = self.collector, self._kernel
        assert collector is not None
        assert kernel is not None
        self._memory |= memory.held()
        self._end_collector()
        symbols = Kallsyms()  # of this kernel: whoever asks may run another
        loss, log = collector.loss(), collector.loss_log
        for entry in self._sink.losses() if self._sink is not None else ():
            loss[entry["channel"]] += entry["count"]
            log = [*log, entry]
        return {
            "hooks": self._hooks,
            "probes": [cost.as_dict() for cost in kernel.read_costs()],
            "loss": loss,
            "loss_log": log,
            "coverage": coverage(collector.events_seen, loss, unread=collector.events_unread),
            "events_seen": collector.events_seen,
            "events_unread": collector.events_unread,
            "reader_cpu_ns": collector.cpu_ns,
            "memory": self._memory,
            "drop_reasons": {str(number): name for number, name in kernel.reason_names.items()},
            "drop_places": {str(place): symbols.name_of(place) for place in sorted(collector.drop_places)},
        }

    def close(self) -> None:
        """See `Agent`."""
        if self._emulator is not None:
            self._emulator.clear()
        if self._drift is not None:
            self._drift.close()
        try:
            self._end_collector()
        finally:
            if self._kernel is not None:
                self._kernel.close()

    def _end_collector(self) -> None:
        # Without `stop` too: what was seen until then is whole, and goes by its names.
        if self.collector is None or self._ended:
            return
        self._ended = True
        self.collector.stop()
        if self._sink is not None:
            assert self._kernel is not None
            pairs = [[*pair, times] for pair, times in sorted(self._kernel.pairs().items())]
            self._sink.close(self._owners, pairs)


def _standing(programs: Set[str], there: Links, index: int) -> DeviceState:
    found = {}
    for parent in (INGRESS, EGRESS):
        for each in there.described("filter", index, parent):
            name = attributes(each.options).get(_TCA_BPF_NAME, b"").rstrip(b"\0").decode()
            if name in programs:
                found[f"probe {name}"] = f"{each.handle} {each.options.hex()}"
    return found
