"""What a run does in its pods, on their node: it finds containers, opens gates, tries ways, measures paths.

All of it takes the pods' node, and may be asked for elsewhere: `ztprobe.agent.pod_access_here` does it
on this machine, `ztprobe.agent.pod_access_calls` carries it to another one's agent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile
from ztprobe.runtime.attempts import PodNetworks

__all__ = ("Address", "Arrival", "ContainerProcess", "PathLoad", "PathProbes", "PodAccess")

Address = tuple[str, int]  # IPv4 and port
Arrival = tuple[int, int, int]  # the sender's number, when it was sent, when it arrived: wall clocks, in ns


@dataclass(frozen=True, kw_only=True)
class ContainerProcess:
    """A process in a container of a pod."""

    pid: int
    uid: str  # that the pod's cgroup is named after
    container: str  # ID
    is_hold: bool  # of one that is not named yet: it does nothing but keep its pod


@dataclass(frozen=True, kw_only=True)
class PathProbes:
    """One node's share of probing the ways between pods of several nodes."""

    ends: tuple[Address, ...]  # of all pods
    own: Mapping[int, str]  # numbers of the ends that are this node's pods
    flows: tuple[tuple[int, int], ...]  # sender's number, receiver's
    profile: Profile  # that is said to be in force
    probes: int  # per flow
    seconds: float
    late_s: float  # how much later than this other nodes may begin


@dataclass(frozen=True, kw_only=True)
class PathLoad:
    """One node's share of offering more than the rate: from ends to the first, from that to all others."""

    ends: tuple[Address, ...]
    own: Mapping[int, str]
    profile: Profile
    late_s: float
    senders: tuple[int, ...] | None = None  # of them; None: all


class PodAccess(PodNetworks, Protocol):
    """See the module."""

    def containers(self, uids: Sequence[str], named: Collection[str]) -> list[ContainerProcess]:
        """All processes in containers of pods.

        :param uids: that their cgroups are named after.
        :param named: IDs of containers of which it is known what they are.
        """
        ...

    def open_gate(self, pids: Sequence[int], name: str) -> float | None:
        """Let the pod go on that is held by a gate's processes (`ztprobe.runtime.cluster.gate`).

        :returns: how long it was held, in seconds; None: none of them is there.
        """
        ...

    def resolvers(self, pids: Sequence[int]) -> list[str]:
        """Addresses of the name servers that the first of these processes would ask that names any."""
        ...

    def sysctls(self, pod: Pod) -> dict[str, str | None]:
        """The settings that shape its transfers; None: not known there."""
        ...

    def cgroup_version(self) -> str:
        """v1 | v2 | hybrid"""
        ...

    def one_by_one(self, pod: Pod) -> None:
        """Have what leaves its interface be packets of wire size."""
        ...

    def listens(self, pids: Sequence[int], port: int) -> bool:
        """Whether one of these processes listens on a TCP port."""
        ...

    def sidecar_ready(self, pod: Pod) -> bool:
        """Whether its sidecar knows where its server is, and takes connections."""
        ...

    def open_ends(self, pods: Sequence[Pod]) -> list[Address]:
        """A UDP socket in each pod's network, for measurements, until `close_ends`."""
        ...

    def probe_path(self, share: PathProbes) -> dict[int, list[Arrival]]:
        """Send this node's probes, and take what arrives at its ends: by their numbers."""
        ...

    def load_path(self, share: PathLoad) -> dict[int, list[Arrival]]:
        """Offer this node's load, and take what arrives at its ends: by their numbers."""
        ...

    def close_ends(self) -> None:
        """Close what `open_ends` has opened; idempotent."""
        ...
