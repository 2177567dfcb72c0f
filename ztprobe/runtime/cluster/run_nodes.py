"""The nodes that a run's pods are on: where each pod is, and who acts in it there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ztprobe.agent.pod_access import PodAccess
from ztprobe.agent.pod_access_here import PodAccessHere
from ztprobe.kubernetes.answers import Object
from ztprobe.kubernetes.pod_facts import cgroup_uid
from ztprobe.kubernetes.pod_source import Cluster
from ztprobe.pods.model import Pod
from ztprobe.runtime.attempts import Stream
from ztprobe.runtime.cluster import pod_states, refusals

__all__ = ("AllNetworks", "OneNode", "RunNodes", "RunProcess", "processes_by")


@dataclass(frozen=True, kw_only=True)
class RunProcess:
    """A process in a container of one of the run's pods."""

    number: int  # the same for no other process of the run, on whatever node
    pid: int  # on its node
    pod: str
    container: str  # ID
    is_hold: bool  # of one that the API has not named yet: it does nothing but keep its pod


class RunNodes(Protocol):
    """See the module."""

    def look_at(self, objects: Mapping[str, Object], count: int) -> None:
        """What the API says of the pods, as soon as it says it.

        :param count: of all pods that there will be.
        :raises UsageError: one is where nobody can act for it.
        """
        ...

    def enter(self, objects: Mapping[str, Object], server: str) -> dict[str, Pod]:
        """Find all of the pods' networks.

        :param objects: by name.
        :param server: the server's name.
        :returns: pods by name, in the order of the objects.
        :raises UsageError: one is where nobody can act for it.
        :raises PreflightError: one cannot be seen.
        """
        ...

    def access(self, pod: Pod) -> PodAccess:
        """Who acts in a pod."""
        ...

    def processes(self, objects: Mapping[str, Object]) -> list[RunProcess]:
        """What runs in pods now."""
        ...


class OneNode:
    """All pods are on this one.

    :param cluster: as seen from here.
    """

    def __init__(self, cluster: Callable[[], Cluster]) -> None:
        self._cluster = cluster
        self._access = PodAccessHere()

    def look_at(self, objects: Mapping[str, Object], count: int) -> None:
        """See `RunNodes`."""
        refusals.refuse_apart(self._cluster(), objects, count)

    def enter(self, objects: Mapping[str, Object], server: str) -> dict[str, Pod]:
        """See `RunNodes`."""
        cluster = self._cluster()
        cluster.look_again()
        found = {name: cluster.resolved(one) for name, one in objects.items()}
        here = {pod.node for pod in found.values() if pod is not None}
        away = {name: pod_states.node_of(objects[name]) for name, pod in found.items() if pod is None}
        refusals.refuse_away(away, min(here, default=cluster.node), len(objects))
        return {name: pod for name, pod in found.items() if pod is not None}

    def access(self, pod: Pod) -> PodAccess:
        """See `RunNodes`."""
        return self._access

    def processes(self, objects: Mapping[str, Object]) -> list[RunProcess]:
        """See `RunNodes`."""
        return processes_by(self._access, objects, lambda pid: pid)


def processes_by(
    access: PodAccess, objects: Mapping[str, Object], number_of: Callable[[int], int]
) -> list[RunProcess]:
    """What runs in one node's pods.

    :param number_of: tells a process of its number there from those of other nodes.
    """
    names = {cgroup_uid(one): name for name, one in objects.items()}
    return [
        RunProcess(
            number=number_of(one.pid),
            pid=one.pid,
            pod=names[one.uid],
            container=one.container,
            is_hold=one.is_hold,
        )
        for one in access.containers(list(names), pod_states.container_names(objects.values()))
    ]


class AllNetworks:
    """`ztprobe.runtime.attempts.PodNetworks` of pods wherever they are."""

    def __init__(self, nodes: RunNodes) -> None:
        self._nodes = nodes

    def dial(self, pod: Pod, address: str, port: int, timeout_s: float) -> tuple[str, Stream | None]:
        """See `PodNetworks`."""
        return self._nodes.access(pod).dial(pod, address, port, timeout_s)

    def ask(self, pod: Pod, address: str, port: int, datagram: bytes, timeout_s: float) -> bytes | None:
        """See `PodNetworks`."""
        return self._nodes.access(pod).ask(pod, address, port, datagram, timeout_s)

    @contextlib.contextmanager
    def listening(self, pod: Pod, port: int) -> Iterator[Callable[[], None]]:
        """See `PodNetworks`."""
        with self._nodes.access(pod).listening(pod, port) as take:
            yield take
