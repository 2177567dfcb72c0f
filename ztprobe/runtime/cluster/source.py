"""Where a traced run's pods, processes and logs are found: on their nodes, and by what the API last told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.pod_facts import LOGS
from ztprobe.kubernetes.pod_log import PodLog
from ztprobe.kubernetes.pod_source import Cluster
from ztprobe.pods.local import log_name
from ztprobe.pods.model import Pod
from ztprobe.pods.selectors import Selector
from ztprobe.pods.source import Found, Processes
from ztprobe.runtime.cluster.gate import HOLD
from ztprobe.runtime.cluster.kept_logs import KeptLog
from ztprobe.runtime.cluster.pod_states import container_names
from ztprobe.runtime.cluster.run_nodes import RunNodes, RunProcess
from ztprobe.runtime.cluster.run_pods import RunPods

__all__ = ("RunSource", "logs_of")


class RunSource:
    """A `ztprobe.pods.source.PodSource` that waits for no API.

    :param cluster: as seen from this machine.
    :param nodes: that the pods are on.
    :param run_pods: what the API told.
    :param kept: the directory that keeps the containers' logs.
    """

    def __init__(
        self, cluster: Callable[[], Cluster], nodes: RunNodes, run_pods: Callable[[], RunPods], kept: Path
    ) -> None:
        self._cluster, self._nodes, self._run_pods, self._kept = cluster, nodes, run_pods, kept
        self._api: Api | None = None  # for logs; None: they are read from kubelet's files
        self._applications: dict[str, str] = {}
        self._earlier: set[str] = set()  # containers' IDs
        self._logs: dict[tuple[str, str], KeptLog | PodLog] = {}
        self._pods: dict[str, Pod] = {}

    def read_logs_through(self, api: Api) -> None:
        """The files are not to be seen: ask for what is in them."""
        self._api = api

    def know(self, pods: Iterable[Pod]) -> None:
        """These are the run's, found on this node."""
        self._pods = {pod.name: pod for pod in pods}

    def named(self, name: str) -> Pod:
        """One of the run's. :raises KeyError: there is none of that name."""
        return self._pods[name]

    def pods_here(self, selector: Selector, namespace: str) -> Found:
        """See `PodSource`."""
        return self._cluster().pods_here(selector, namespace)

    def peers(self, selector: Selector, namespace: str) -> Found:
        """See `PodSource`."""
        return self._cluster().peers(selector, namespace)

    def neighbours(self, namespace: str) -> list[Pod]:
        """See `PodSource`."""
        return self._cluster().neighbours(namespace)

    def at_gates(self, applications: Mapping[str, str]) -> None:
        """The pods stand at their gates: which containers there are by now, sandboxes among them.

        :param applications: pod's name -> the one container that comes yet.
        """
        self._applications = dict(applications)
        self._earlier = {one.container for one in self._running(applications)}

    def processes(self, pods: Iterable[Pod]) -> Processes:
        """See `PodSource`; processes go by numbers that are the same on no two nodes."""
        return {one.number: (one.pod, name) for one, name in self._named(pod.name for pod in pods)}

    def pids(self, pod: Pod, container: str) -> list[int]:
        """Processes of a container, as their node knows them."""
        return [one.pid for one, name in self._named([pod.name]) if name == container]

    def _named(self, pods: Iterable[str]) -> list[tuple[RunProcess, str]]:
        """What runs in pods, and in which container."""
        names = container_names(self._run_pods().objects.values())
        found = []
        for one in self._running(pods):
            if one.container in names:
                found.append((one, names[one.container]))
            elif one.pod in self._applications and one.container not in self._earlier:
                # The API tells of both a second or two later.
                found.append((one, HOLD if one.is_hold else self._applications[one.pod]))
        return found

    def _running(self, pods: Iterable[str]) -> list[RunProcess]:
        objects = self._run_pods().objects
        return self._nodes.processes({name: objects[name] for name in pods if name in objects})

    def log(self, pod: Pod, container: str) -> Path:
        """See `PodSource`: as the run directory keeps it, with all that there is by now."""
        return self._log(pod, container).kept

    def text(self, pod: Pod, container: str) -> str:
        """All that a container has written to its standard output by now."""
        kept = self.log(pod, container)
        return kept.read_text(errors="replace") if kept.exists() else ""

    def _log(self, pod: Pod, container: str) -> KeptLog | PodLog:
        key = (pod.name, container)
        if key not in self._logs:
            kept = self._kept / log_name(pod.name, container)
            if self._api is None:
                self._logs[key] = KeptLog(logs_of(pod) / container, kept)
            else:
                read = functools.partial(self._api.log, pod.namespace, pod.name, container)
                self._logs[key] = PodLog(read, kept)
        self._logs[key].look()
        return self._logs[key]

    def look(self) -> None:
        """Copy what is new in the logs that have been asked for."""
        for log in self._logs.values():
            log.look()

    def complete(self) -> None:
        """Copy all that there is by now, however long the API takes."""
        for log in self._logs.values():
            log.complete()

    def close(self) -> None:
        """Copy what is left, and read no more."""
        for log in self._logs.values():
            log.close()


def logs_of(pod: Pod) -> Path:
    """The directory with one for each container, as kubelet names it."""
    return LOGS / f"{pod.namespace}_{pod.name}_{pod.uid}"
