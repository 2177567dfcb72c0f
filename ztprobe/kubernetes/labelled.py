"""Labels of a cluster's pods, seen from one of its nodes: a `ztprobe.pods.labelled.LabelledPods`.

The API says which pods a selector means and what addresses they have; this node's kernel says which of them
run here, by the UID in their processes' cgroups. An API that is away for a while is asked again: what it
said last still holds.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe.errors import UsageError, ZtprobeError
from ztprobe.kubernetes.api import Api, Object
from ztprobe.kubernetes.pod_facts import LOGS, NODE_NAME, cgroup_uid, is_over, newest_log
from ztprobe.kubernetes.pod_log import ReadLog
from ztprobe.kubernetes.policy_objects import cluster_documents
from ztprobe.kubernetes.repeated import NotedAnswers, Repeated
from ztprobe.pods.cgroup_path import pod_of_path
from ztprobe.pods.labelled import Labelled
from ztprobe.pods.process_table import OneProcess
from ztprobe.pods.selection import nothing_matches
from ztprobe.pods.targets import Target

__all__ = ("ClusterLabelledPods",)

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_MOST_CHANGES = 1_000  # of objects; those of a cluster in which pods come and go all the time have no end


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A pod, as far as it matters here."""

    name: str
    uid: str  # as its cgroup is named
    api_uid: str
    node: str
    addresses: tuple[str, ...]
    container: str  # the one that its log is read of
    is_in_hosts_network: bool

    @classmethod
    def of(cls, pod: Object) -> _Listed:
        metadata, spec, status = pod["metadata"], pod["spec"], pod["status"]
        annotations = metadata.get("annotations") or {}
        listed = [entry.get("ip", "") for entry in status.get("podIPs") or ()] or [status.get("podIP") or ""]
        containers = [str(one.get("name", "")) for one in spec.get("containers") or ()]
        return cls(
            name=metadata["name"],
            uid=cgroup_uid(pod),
            api_uid=metadata["uid"],
            node=spec.get("nodeName") or "",
            addresses=tuple(filter(None, listed)),
            container=annotations.get(_DEFAULT_CONTAINER) or next(iter(containers), ""),
            is_in_hosts_network=bool(spec.get("hostNetwork")),
        )


class ClusterLabelledPods:
    """Those of one namespace.

    :param node: this node's name in the cluster, for pods of which nothing runs yet; None: $NODE_NAME, else
        the node that pods which are seen here are on, else the host's name.
    """

    def __init__(self, api: Api, namespace: str, *, node: str | None = None, logs: Path = LOGS) -> None:
        self._api, self._namespace, self._logs = api, namespace, logs
        self._hosts = _hosts_networks()
        self._node = node or os.environ.get(NODE_NAME)
        self._guessed_node = socket.gethostname().lower()
        self._listed: dict[str, list[_Listed]] = {}  # by selector
        self._asked = NotedAnswers(
            self._ask_again, "the pods known so far are watched, and it is asked again"
        )
        self._again = Repeated(self._asked)
        # Since when (CLOCK_MONOTONIC nanoseconds; 0: since before anybody looked), the oldest first.
        self._in_force: list[tuple[int, list[dict[str, Any]]]] = []
        self._objects_problem = ""

    def look(self, target: Target, processes: Iterable[OneProcess]) -> Labelled:
        """See `LabelledPods`.

        :raises UsageError: the server or a hub is on another node.
        :raises PreflightError: the API refuses or does not answer, the first time.
        """
        pods = self._pods(target.selector.text)
        found = {one.pid: pod.name for one in processes if (pod := self._pod(one, pods)) is not None}
        here = set(found.values())
        self._guessed_node = next((pod.node for pod in pods if pod.name in here), self._guessed_node)
        away = [
            pod
            for pod in pods
            if pod.name not in here and pod.node not in ("", self._node or self._guessed_node)
        ]
        if away and target.role != "client" and not here:
            raise UsageError(
                f"{target.option}: {self._namespace}/{away[0].name} is on node {away[0].node}, and this is "
                f"node {self._node or self._guessed_node}: trace there, or name this node with --node"
            )
        return Labelled(
            processes=found,
            elsewhere={address: pod.name for pod in away for address in pod.addresses[:1]},
        )

    def why_nothing(self, target: Target) -> str:
        """See `LabelledPods`."""
        if pods := self._pods(target.selector.text):
            return (
                f"{self._namespace}/{pods[0].name} is not running yet, or none of its processes can be seen "
                "from here: run ztprobe on its node as root, or in a privileged pod with hostPID: true"
            )
        there = [
            (self._namespace, str(pod["metadata"]["name"]), pod["metadata"].get("labels") or {})
            for pod in self._api.objects("pods", self._namespace)
        ]
        return nothing_matches(self._namespace, there)

    def pod_of(self, process: OneProcess) -> str:
        """See `LabelledPods`."""
        pod = self._pod(process, self._pods(""))
        return "" if pod is None else pod.name

    def _pod(self, process: OneProcess, pods: Iterable[_Listed]) -> _Listed | None:
        """Whose process that is; None: no pod's of these, or one that is on its way into it.

        A container's first process is moved into the pod's cgroup before it enters the pod's network.
        """
        uid = _pod_uid(process.cgroups)
        found = next((pod for pod in pods if pod.uid == uid), None) if uid else None
        if found is not None and not found.is_in_hosts_network and process.netns_inode in self._hosts:
            return None
        return found

    def pod_at(self, address: str) -> str:
        """See `LabelledPods`."""
        return next((pod.name for pod in self._pods("") if address in pod.addresses), "")

    def fresh_notes(self) -> Collection[str]:
        """See `LabelledPods`."""
        return self._asked.fresh_notes()

    def in_force(self) -> list[tuple[int, list[dict[str, Any]]]]:
        """See `LabelledPods`."""
        if not self._in_force and not self._objects_problem:
            self._read_objects()
        return self._in_force

    def _read_objects(self) -> None:
        try:
            documents, problem = cluster_documents(self._api), ""
        except ZtprobeError as error:
            documents, problem = [], f"the policies in force are not known: {error}"
        if problem:
            if not self._objects_problem and not self._asked.is_away:
                self._asked.note(problem)
        elif not self._in_force:
            self._in_force.append((0, documents))
        elif documents != self._in_force[-1][1] and len(self._in_force) < _MOST_CHANGES:
            self._in_force.append((time.monotonic_ns(), documents))
        self._objects_problem = problem

    def log_of(self, target: Target) -> Path | None:
        """The file with the output of the one pod that labels mean, of its latest start; None: none is here.

        Lines are kubelet's: time, stream, tag, text.
        """
        pods = self._pods(target.selector.text)
        if len(pods) != 1:
            return None
        directory = self._logs / f"{self._namespace}_{pods[0].name}_{pods[0].api_uid}" / pods[0].container
        log = newest_log(directory)
        return log if log.exists() else None

    def log_reader(self, target: Target) -> ReadLog | None:
        """See `LabelledPods`; None: labels do not mean one pod."""
        pods = self._pods(target.selector.text)
        if len(pods) != 1:
            return None
        return functools.partial(self._api.log, self._namespace, pods[0].name, pods[0].container)

    def _pods(self, selector: str) -> list[_Listed]:
        """What the API said last; it is asked again behind the scenes, so that nobody waits for it."""
        if selector not in self._listed:
            self._listed[selector] = self._ask(selector)
        self._again.look()
        return self._listed[selector]

    def _ask(self, selector: str) -> list[_Listed]:
        pods = self._api.objects("pods", self._namespace, selector)
        return [_Listed.of(pod) for pod in pods if not is_over(pod)]

    def _ask_again(self) -> None:
        for selector in list(self._listed):
            self._listed[selector] = self._ask(selector)
        self._read_objects()


def _hosts_networks() -> set[int]:
    """The node's own network, and whichever this command runs in."""
    found = set()
    for process in ("1", "self"):
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{process}/ns/net").st_ino)
    return found


@functools.lru_cache(maxsize=4096)
def _pod_uid(cgroups: tuple[str, ...]) -> str:
    """Of a process in these cgroups, one for each hierarchy; empty: no pod's."""
    found = {uid for path in cgroups if (uid := pod_of_path(path)) is not None}
    return found.pop() if len(found) == 1 else ""  # hierarchies that name two pods: somebody made that up
