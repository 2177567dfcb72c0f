"""One node of an observed deployment, and its agent's session."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ztprobe.agent.endpoints import OwnedSocket
from ztprobe.agent.interface import Account, NodeFacts, PodProcess
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.attach.owner_log import OwnedEnd
from ztprobe.errors import ZtprobeError
from ztprobe.events.owners import AT_ATTACHMENT, SIDECAR, WHILE_RUNNING
from ztprobe.pods.model import Pod
from ztprobe.pods.participants import is_proxy_beside
from ztprobe.pods.source import Processes

__all__ = ("ObservedNode",)

_PLACE_AGAIN_S = 1.0  # a pod that has just begun has no processes yet


class ObservedNode:
    """Watches its pods until `stop`; a context manager.

    :param name: the node's.
    :param batches: directory for what it sees.
    :param run: what its agent calls the run.
    :raises ZtprobeError: the agent does not answer, or is at work for somebody else.
    """

    def __init__(self, name: str, connection: Connection, batches: Path, *, run: str) -> None:
        self.name, self.batches = name, batches
        self._connection = connection
        self._client = AgentClient(connection, batches, run=run, attached=True)
        self.facts: NodeFacts | None = None
        self.hooks: dict[str, str] = {}
        self.pods: dict[str, Pod] = {}  # all that it ever watched, by name
        self.unseen: dict[str, str] = {}
        self.processes: dict[int, tuple[PodProcess, str]] = {}  # all that there ever were, with their pods
        self.clock_samples: list[dict[str, int]] = []
        self._placed_s = -_PLACE_AGAIN_S
        self._sampled_ns = 0  # of the last one, by this machine's clock
        self.ends: list[OwnedEnd] = []
        self.account: Account | None = None  # None: it watches
        self.problem: str | None = None
        self._known: dict[tuple[str, object], OwnedEnd] = {}
        self._watched: Processes = {}
        self._is_begun = self._is_looked_at = False
        # What numbers in events stand for, where the agent has not said so yet.
        self.places: dict[str, str] = {}
        self.names: dict[str, str] = {}

    def __enter__(self) -> ObservedNode:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def begin(self, pods: Iterable[Pod]) -> None:
        """Load the probes, find the pods, and begin to see.

        :raises PreflightError: its kernel lacks something.
        """
        self.sample()
        self._client.prepare()
        self.facts = self._client.facts()
        self.add(pods)
        self.look()
        self.hooks = self._client.start()
        self._is_begun = True

    def add(self, pods: Iterable[Pod]) -> list[str]:
        """Watch these, too, as soon as its kernel has them.

        :returns: why one cannot be watched yet, once each, for people.
        """
        new = [pod for pod in pods if (known := self.pods.get(pod.name)) is None or known.uid != pod.uid]
        if not new or time.monotonic() - self._placed_s < _PLACE_AGAIN_S:
            return []
        self._placed_s = time.monotonic()
        found = self._client.place(new)
        self.places |= found.places
        for pod in found.pods:
            if (before := self.pods.get(pod.name)) is not None:
                self._client.remove_pod(before)
            self.pods[pod.name] = pod
            self._client.add_pod(pod)
        notes = [why for name, why in found.unseen.items() if name not in self.unseen]
        self.unseen = found.unseen
        return notes

    def sample(self) -> None:
        """Read its clocks."""
        self.clock_samples.append(self._client.clock())
        self._sampled_ns = time.monotonic_ns()

    def _guess_clock(self) -> None:
        """Of a node that does not answer: nothing that it has told is later than now."""
        last, now_ns = self.clock_samples[-1], self.now_ns
        passed_ns = now_ns - last["time_monotonic_ns"]
        told = {"time_monotonic_ns": now_ns, "time_unix_ns": last["time_unix_ns"] + passed_ns}
        self.clock_samples.append(told)
        self._sampled_ns += passed_ns

    @property
    def now_ns(self) -> int:
        """Its CLOCK_MONOTONIC, late by what a message takes; it is not asked."""
        return self.clock_samples[-1]["time_monotonic_ns"] + time.monotonic_ns() - self._sampled_ns

    def look(self) -> list[str]:
        """See which processes there are, and how things stand. :returns: notes, for people."""
        by_uid = {pod.uid: pod.name for pod in self.pods.values()}
        found = {one.pid: one for one in self._client.processes(list(by_uid))}
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
            self._client.watch(running)
            self._watched = running
        if not self._is_begun:
            return []
        status = self._client.status()
        self.problem = status.problem
        return list(status.notes)

    def sockets(self) -> list[OwnedSocket]:
        """The sockets of its pods; whose they are is kept."""
        found, now_ns = self._client.sockets(), self.now_ns
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
        return self._client.counters()

    def tell_round(self, duration_s: float) -> None:
        """For whoever looks at its agent's figures; one that is older has none of rounds."""
        with contextlib.suppress(ZtprobeError):
            self._connection.tell_round(duration_s)

    def stop(self) -> str | None:
        """See no more, and have all that was seen. :returns: what was wrong; None: nothing."""
        try:
            self.account = self._client.stop()
            self.sample()  # nothing that was seen is later
        except ZtprobeError as error:
            self._guess_clock()
            reasons = self.facts.drop_reasons if self.facts is not None else {}
            self.account = Account(hooks=self.hooks, coverage=0.0, drop_reasons=reasons)
            return str(error)
        return self.account.problem
