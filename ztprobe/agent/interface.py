"""The agent as whoever asks sees it: everything that touches a node, behind one small interface.

Arguments and answers are values that JSON can carry, so that the one who asks may be in the same
process (`ztprobe.agent.node_agent.NodeAgent`), in another (`ztprobe.agent.remote.AgentProcess`) or
on another machine. Events are no answers: they go to the agent's sink (`ztprobe.agent.sinks`) while
it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ztprobe.agent.counts import Counts
from ztprobe.agent.endpoints import OwnedSocket
from ztprobe.agent.stall_snapshot import StallLook
from ztprobe.leases.following import Following, FollowState
from ztprobe.leases.records import Lease, StepInForce
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes
from ztprobe.process.identity import MachineProcess
from ztprobe.profile.model import Profile

__all__ = (
    "Account",
    "Agent",
    "LeaseRequest",
    "LeaseState",
    "Leases",
    "LoadPart",
    "Measurement",
    "NodeFacts",
    "NodeView",
    "PlacedPods",
    "PodProcess",
    "Status",
)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What pods get of the profile that is in force."""

    backend: str  # what puts it into force
    requested: dict[str, Any]
    measured: dict[str, Any]
    details: dict[str, Any]
    summary: str  # for people
    problems: list[str]  # why the profile is evidently not in force; empty: nothing says so


@dataclass(frozen=True, kw_only=True)
class Status:
    """How things stand. Taking it costs a system call or two as long as nothing has changed."""

    problem: str | None  # what makes everything from now on worthless; it stays said
    notes: list[str]  # for people, since the last time


@dataclass(frozen=True, kw_only=True)
class Account:
    """What was seen, what that cost, and what was in force meanwhile."""

    hooks: dict[str, str] = field(default_factory=dict)  # signal -> hook
    probes: list[dict[str, Any]] = field(default_factory=list)
    loss: dict[str, int] = field(default_factory=dict)
    # when: from_ns, to_ns (CLOCK_MONOTONIC), channel, count
    loss_log: list[dict[str, Any]] = field(default_factory=list)
    coverage: float = 1.0
    events_seen: int = 0
    events_unread: int = 0
    reader_cpu_ns: int = 0
    memory: dict[str, int] = field(default_factory=dict)  # see ztprobe.agent.memory
    drop_reasons: dict[str, str] = field(default_factory=dict)  # the kernel's number -> name
    drop_places: dict[str, str] = field(default_factory=dict)  # address in that kernel -> function
    emulation: dict[str, Any] = field(default_factory=dict)  # what the backend counted
    observed: dict[str, Any] = field(default_factory=dict)  # pod -> see ztprobe.agent.observed_qdiscs
    schedule: dict[str, Any] | None = None  # what was in force when; None: no schedule was begun
    problem: str | None = None  # why the profile was not in force until the end; None: it was


@dataclass(frozen=True, kw_only=True)
class LeaseRequest:
    """A profile on pods of this node for a time."""

    profile: Profile
    pods: tuple[Pod, ...]
    peers: tuple[Pod, ...] | None = None  # None: towards anyone
    lasts_s: float
    direction: str = "egress"  # egress | ingress | both
    at: str = "auto"  # auto | pod | host: which end of a pod's veth is shaped
    replace: bool = False  # take other qdiscs away for the time
    backend: str | None = None  # netem | nfqueue | tbf; None: the kernel's best
    lease_id: str | None = None  # the same on several nodes; None: a new one
    # How the pods were found, to be told again.
    selector: str = ""
    to: str | None = None
    namespace: str = ""
    follow: Following | None = None  # None: on these pods and no others, also if the selector means more


@dataclass(frozen=True, kw_only=True)
class LeaseState:
    """A lease and how it stands."""

    lease: Lease
    counted: dict[str, Any]  # `ztprobe.emulation.counters`
    step: StepInForce | None  # of its profile's schedule, as its keeper wrote it down last
    followed: FollowState | None = None  # since when pods are under it, likewise


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a node is, for run.json."""

    kernel: str
    machine: str
    cores: int
    drop_reasons: dict[str, str]  # the kernel's number -> name


@dataclass(frozen=True, kw_only=True)
class PlacedPods:
    """Pods as their node's kernel has them, and those that it cannot find."""

    pods: list[Pod]
    unseen: dict[str, str]  # pod's name -> why, for people
    places: dict[str, str]  # inode of a network namespace -> pod, or "node"


@dataclass(frozen=True, kw_only=True)
class PodProcess:
    """A process in a pod."""

    pid: int
    uid: str  # that the pod's cgroup is named after
    started_ticks: int  # with the pid its identity
    program: str
    command: str  # as it may be shown


@dataclass(frozen=True, kw_only=True)
class LoadPart:
    """Of a node's record of what else it does."""

    rows: list[dict[str, Any]]  # those that were asked for; see `ztprobe.agent.machine_load`
    facts: dict[str, Any]
    cpu_ns: int  # that recording itself has cost so far


class NodeView(Protocol):
    """What a node tells somebody elsewhere of pods that an API has named."""

    def facts(self) -> NodeFacts:
        """What it is. Call it after `Agent.prepare`."""
        ...

    def clock(self) -> dict[str, int]:
        """``time_monotonic_ns`` and ``time_unix_ns`` at one instant."""
        ...

    def place(self, pods: Sequence[Pod]) -> PlacedPods:
        """Find pods of which names, addresses and UIDs are known."""
        ...

    def processes(self, uids: Sequence[str]) -> list[PodProcess]:
        """What runs in pods now.

        :param uids: that their cgroups are named after.
        """
        ...

    def sockets(self) -> list[OwnedSocket]:
        """The TCP sockets of the processes that the agent watches."""
        ...

    def stall_look(self) -> StallLook:
        """How connections and processes of the pods that the agent watches stand."""
        ...

    def record_load(self, ours: Sequence[MachineProcess]) -> str:
        """Begin to record what else the node does (`ztprobe.agent.machine_load`).

        The deployment is what `Agent.watch` has named, ztprobe the agent with all its processes.

        :param ours: ztprobe's, too, if they run under this kernel.
        :returns: the kernel's boot id.
        """
        ...

    def load(self, after: int, *, last: bool = False) -> LoadPart:
        """What was recorded but for the first so many rows, which are forgotten.

        :param last: record no more.
        """
        ...

    def busiest(self) -> str | None:
        """Which foreign process uses most CPU time just now; None: none."""
        ...


class Leases(Protocol):
    """Profiles on pods of a node that outlive whoever asked for them: a process of their own keeps each."""

    def plan_lease(self, wanted: LeaseRequest) -> Lease:
        """What would be done; nothing is changed.

        :raises EnforcementError: a pod is under another lease in the same direction, or an interface is
            somebody else's.
        :raises PreflightError: this kernel cannot emulate the profile on these pods.
        """
        ...

    def begin_lease(self, lease: Lease) -> None:
        """Put a planned lease into force.

        :raises ZtprobeError: it could not be; nothing of it is left.
        """
        ...

    def leases(self) -> list[LeaseState]:
        """Every lease on this node, oldest first."""
        ...

    def end_leases(self, ids: Sequence[str]) -> list[Lease]:
        """End these leases now, or all of them where none is named; says which they were.

        :raises UsageError: there is no lease of such a name; then none is ended.
        """
        ...


class Agent(Protocol):
    """Probes and emulation on one node.

    prepare -> add_pod ... -> start -> [pods and processes come and go] -> stop -> close.
    Between start and stop a profile may be put into force (apply), measured and followed.
    """

    def prepare(self) -> None:
        """Compile and load the probes; needs no pods yet.

        :raises PreflightError: the kernel lacks something that they need.
        """
        ...

    def add_pod(self, pod: Pod) -> None:
        """Watch a pod of this node from now on, and what forwards between it and others.

        :raises PreflightError: its interfaces cannot be watched.
        """
        ...

    def remove_pod(self, pod: Pod) -> None:
        """Watch it no longer and take a profile off it; it may be gone already. What was seen stays."""
        ...

    def watch(self, processes: Processes) -> None:
        """These processes run in the pods now; any that was there before and is not among them has ended."""
        ...

    def start(self) -> dict[str, str]:
        """Begin to see. :returns: signal -> hook in use. :raises PreflightError: the kernel refuses."""
        ...

    def apply(self, profile: Profile, *, seed: int) -> str:
        """Put a profile into force on the egress of the pods that are there, until `stop`.

        :param seed: of the delay line's draws; netem draws its own.
        :returns: what puts it into force.
        :raises EnforcementError: an interface is someone else's, or the kernel refused.
        :raises PreflightError: this kernel cannot emulate the profile.
        """
        ...

    def measure(self, server: str, clients: Sequence[str]) -> Measurement:
        """Measure what these pods get of it, with probes of our own; before any policy is in force."""
        ...

    def follow(self) -> None:
        """Begin the profile's schedule now, if it has one."""
        ...

    def status(self) -> Status:
        """How things stand."""
        ...

    def topology(self) -> dict[str, Any]:
        """Who serves whom now, by the pods' sockets (`ztprobe.agent.endpoints`)."""
        ...

    def counters(self) -> dict[str, Any]:
        """What pods and containers have run into so far (`ztprobe.agent.pod_counters`)."""
        ...

    def tally(self) -> Counts:
        """What it has seen so far, counted (`ztprobe.agent.tally`)."""
        ...

    def stop(self) -> Account:
        """See no more, take the profile off, and tell. The sink has everything by then."""
        ...

    def close(self) -> None:
        """Undo everything, whatever state it is in; idempotent."""
        ...
