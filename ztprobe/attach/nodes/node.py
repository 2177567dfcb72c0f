"""One node of an observed deployment, and its agent's session."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe.agent.endpoints import OwnedSocket
from ztprobe.agent.interface import PodProcess
from ztprobe.agent.service.client import Connection
from ztprobe.agent.service.node_session import NodeSession
from ztprobe.attach.owner_log import OwnedEnd
from ztprobe.attach.owners import owners_table
from ztprobe.events.owners import AT_ATTACHMENT, OWNERS, SIDECAR, WHILE_RUNNING
from ztprobe.pods.model import Pod
from ztprobe.pods.participants import is_proxy_beside
from ztprobe.pods.source import Processes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("ObservedNode",)

_PLACE_AGAIN_S = 1.0  # a pod that has just begun has no processes yet


class ObservedNode(NodeSession):
    """Watches its pods until `stop`.

    :param name: the node's.
    :param batches: directory for what it sees.
    :param run: what its agent calls the run.
    :raises ZtprobeError: the agent does not answer, or is at work for somebody else.
    """

    def __init__(self, name: str, connection: Connection, batches: Path, *, run: str) -> None:
        super().__init__(name, connection, batches, run=run, attached=True)
        self.unseen: dict[str, str] = {}
        self.processes: dict[int, tuple[PodProcess, str]] = {}  # all that there ever were, with their pods
        self._placed_s = -_PLACE_AGAIN_S
        self.ends: list[OwnedEnd] = []
        self.problem: str | None = None
        self._known: dict[tuple[str, object], OwnedEnd] = {}
        self._watched: Processes = {}
        self._is_begun = self._is_looked_at = False

    def __enter__(self) -> ObservedNode:
        return self

    def begin(self, pods: Iterable[Pod]) -> None:
        """Load the probes, find the pods, and begin to see.

        :raises PreflightError: its kernel lacks something.
        """
        self.sample()
        self.client.prepare()
        self.facts = self.client.facts()
        self.add(pods)
        self.look()
        self.hooks = self.client.start()
        self._is_begun = True

    def add(self, pods: Iterable[Pod]) -> list[str]:
        """Watch these, too, as soon as its kernel has them.

        :returns: why one cannot be watched yet, once each, for people.
        """
        new = [pod for pod in pods if (known := self.pods.get(pod.name)) is None or known.uid != pod.uid]
        if not new or time.monotonic() - self._placed_s < _PLACE_AGAIN_S:
            return []
        self._placed_s = time.monotonic()
        found = self.client.place(new)
        self.places |= found.places
        for pod in found.pods:
            if (before := self.pods.get(pod.name)) is not None:
                self.client.remove_pod(before)
            self.pods[pod.name] = pod
            self.client.add_pod(pod)
        notes = [why for name, why in found.unseen.items() if name not in self.unseen]
        self.unseen = found.unseen
        return notes

    def look(self) -> list[str]:
        """See which processes there are, and how things stand. :returns: notes, for people."""
        by_uid = {pod.uid: pod.name for pod in self.pods.values()}
        found = {one.pid: one for one in self.client.processes(list(by_uid))}
        self.processes |= {pid: (one, by_uid[one.uid]) for pid, one in found.items()}
        # As participants are told apart: what runs in a pod is its application, or its proxy.
        programs: dict[str, set[str]] = {}
        for one in found.values():
            programs.setdefault(one.uid, set()).add(one.program)
        running = {
            pid: (
                by_uid[one.uid],
                SIDECAR if is_proxy_beside(one.program, programs[one.uid]) else by_uid[one.uid],
            )
            for pid, one in found.items()
        }
        self.names |= {str(pid): "/".join(who) for pid, who in running.items()}
        if running != self._watched:
            self.client.watch(running)
            self._watched = running
        if not self._is_begun:
            return []
        status = self.client.status()
        self.problem = None if status.problem is None else self.named(status.problem)
        return list(status.notes)

    def sockets(self) -> list[OwnedSocket]:
        """The sockets of its pods; whose they are is kept."""
        found, now_ns = self.client.sockets(), self.now_ns
        for one in found:
            key = one.pod, one.socket
            end = self._known.get(key)
            if end is not None:
                end.last_seen_ns = now_ns
                continue
            pod = self.pods[one.pod]
            self._known[key] = OwnedEnd(
                netns=pod.netns_inode,
                socket=one.socket,
                pid=0,
                participant=one.pod,
                first_seen_ns=now_ns,
                last_seen_ns=now_ns,
                found=WHILE_RUNNING if self._is_looked_at else AT_ATTACHMENT,
                older=not self._is_looked_at and not one.socket.listens,
            )
            self.ends.append(self._known[key])
        self._is_looked_at = True
        return found

    def counters(self) -> dict[str, Any]:
        """What its pods have run into so far (`ztprobe.agent.pod_counters`)."""
        return self.client.counters()

    def owners(self, tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """Whose its connections are.

        :param tables: of what it saw.
        """
        pods = {pod.netns_inode: name for name, pod in self.pods.items()}
        whose = {pid: pod for pid, (_, pod) in self.processes.items()}
        return {OWNERS.name: owners_table(self.ends, tables, pods, whose)}
