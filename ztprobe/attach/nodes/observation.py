"""A deployment on several nodes while it runs: its pods found, watched by their nodes' agents, its log read.

Nothing of it is on this machine. Whatever is said in instants is so by the clock of the server's node, which
its rounds' events carry, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ztprobe.agent import endpoints
from ztprobe.agent.service.client import Connection
from ztprobe.agent.service.node_session import addresses_by_node
from ztprobe.agent.stall_snapshot import StallLook
from ztprobe.agent.stalls import stall_words
from ztprobe.attach.attached_stalls import AttachedStalls
from ztprobe.attach.nodes.node import ObservedNode
from ztprobe.attach.nodes.pods import DeployedPods
from ztprobe.attach.nodes.request import NodesRequest
from ztprobe.attach.pod_lines import PodLines, followed
from ztprobe.attach.rounds import Rounds
from ztprobe.errors import EnforcementError, PreflightError, ZtprobeError
from ztprobe.experiment.nodes.load import NodesLoad
from ztprobe.experiment.nodes.looks import look_at_nodes
from ztprobe.kubernetes.agents import AgentAddress
from ztprobe.pods.model import Pod

__all__ = ("Observation",)

_SOCKETS_S, _SAMPLE_S = 1.0, 5.0


class Observation:
    """begin -> look ... -> stop; a context manager that ends every session.

    :param directory: for what agents saw and what the server logged; private.
    :param note: is told what people should know.
    """

    def __init__(self, request: NodesRequest, directory: Path, note: Callable[[str], None]) -> None:
        self.request, self.directory = request, directory
        self._note = note
        self._open = contextlib.ExitStack()
        self._run = secrets.token_hex(3)
        self.pods: DeployedPods
        self.ever: dict[str, Pod] = {}  # all that were ever watched or known of, by name; the server first
        self.nodes: dict[str, ObservedNode] = {}  # the server's first
        self.load = NodesLoad()  # what else the nodes do
        self.rounds: Rounds
        self.stalls: AttachedStalls
        self.topology = endpoints.unknown("", ())
        self.counters: list[dict[str, Any]] = []
        self.attached_ns = self.detached_ns = 0
        self._agents: dict[str, AgentAddress] = {}
        self.came_ns: dict[str, int] = {}  # pods that were not there at first: when that was noticed
        self.left_ns: dict[str, int] = {}  # pods that are gone: likewise
        self._unwatched: set[str] = set()
        self._log: PodLines | None = None
        self._next_sockets_s = self._next_sample_s = 0.0

    def __enter__(self) -> Observation:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin(self) -> None:
        """Find the pods, and have their nodes' agents see.

        :raises UsageError: the labels mean no server, or nobody.
        :raises PreflightError: the API or an agent refuses, does not answer, or cannot see.
        """
        self.pods = DeployedPods(self.request)
        self._agents = addresses_by_node(self.request.agents, self.request.tls)
        server = self.pods.server
        self.topology = endpoints.unknown(server.name, [server])
        self._begin_rounds()
        self._renew()
        if server.node not in self.nodes:
            there = ", ".join(sorted(self._agents)) or "none"
            raise PreflightError(
                f"node {server.node}, where {server} runs, has no agent that was asked (agents: {there}):"
                " ztprobe deploy agent puts one on every node"
            )
        if server.name not in self.server_node.pods:
            raise PreflightError(self.server_node.unseen.get(server.name, f"{server} is not found there"))
        self._look_at_sockets()
        self._renew()  # peers, if no clients were named
        self.attached_ns = self.server_node.now_ns
        self.stalls = AttachedStalls(
            self._look_at_pods,
            lambda: ([self.pods.server.name], list(self.pods.clients)),
            since_s=self.attached_ns / 1e9,
            after_s=self.request.stall_after_s,
        )

    @property
    def server_node(self) -> ObservedNode:
        """The node whose clock counts."""
        return self.nodes[self.pods.server.node]

    @property
    def in_order(self) -> list[ObservedNode]:
        """All nodes, the server's first."""
        first = self.server_node
        return [first, *(node for node in self.nodes.values() if node is not first)]

    @property
    def told_by(self) -> str:
        """Where rounds are told, for people."""
        return "the traffic" if self._log is None else f"the log of {self.pods.server}"

    def look(self) -> list[tuple[int, float]]:
        """See what is new. :returns: number and duration of rounds that have ended.

        :raises EnforcementError: an agent sees no more.
        """
        now_s = time.monotonic()
        self.pods.look()
        for note in self.pods.fresh_notes():
            self._note(note)
        self._renew()
        for node in self.nodes.values():
            for note in node.look():
                self._note(f"node {node.name}: {note}")
            if node.problem is not None:
                raise EnforcementError(node.problem)
        if now_s >= self._next_sockets_s:
            self._next_sockets_s = now_s + _SOCKETS_S
            self._look_at_sockets()
        if now_s >= self._next_sample_s:
            self._next_sample_s = now_s + _SAMPLE_S
            self._sample()
        ended = self._read()
        if (stall := self.stalls.overdue(self.server_node.now_ns / 1e9, self.rounds)) is not None:
            self._note(stall_words(stall))
        return ended

    def _look_at_pods(self) -> StallLook:
        found = look_at_nodes(self.in_order)
        elsewhere = {pod.address: pod.name for pod in self.ever.values()}  # where nobody watches
        return dataclasses.replace(found, addresses={**elsewhere, **found.addresses})

    def _sample(self) -> None:
        """Of clocks and counters; all of them within moments, so one time stands for all."""
        found: dict[str, Any] = {"at_ns": self.server_node.now_ns, "pods": {}, "containers": {}}
        for node in self.nodes.values():
            node.sample()
            told = node.counters()
            for kind in ("pods", "containers"):
                found[kind] |= told[kind]
        self.counters.append(found)
        self.load.renew()

    def stop(self) -> ZtprobeError | None:
        """See no more. :returns: what was wrong until then."""
        self.detached_ns = self.server_node.now_ns
        last_first = reversed(self.in_order)  # all that others saw is earlier than the server's last sample
        found = [problem for node in last_first if (problem := node.stop()) is not None]
        self.load.stop()
        if self._log is not None:
            self._log.complete()
        self._read()
        return EnforcementError(found[0]) if found else None

    def _read(self) -> list[tuple[int, float]]:
        return self.rounds.read(self.attached_ns, self.detached_ns)

    def _begin_rounds(self) -> None:
        """From what the server's pod writes, if the API gives it; else from the traffic."""
        server, container = self.pods.server, self.pods.server_container
        read = functools.partial(self.request.api.log, server.namespace, server.name, container)
        kept = self.directory / f"{server.name}.{container}.log"
        try:
            self._log = self._open.enter_context(followed(read, kept))
        except ZtprobeError as error:
            self._note(f"{error}: rounds are told from the traffic")
        self.rounds = Rounds(None if self._log is None else self._log.lines, "generic", must_tell=False)

    def _renew(self) -> None:
        """Watch pods that are new, and open sessions on nodes that are."""
        by_node: dict[str, list[Pod]] = {}
        there = {pod.name for pod in self.pods.all}
        for name in self.ever.keys() - there:
            self.left_ns.setdefault(name, self.server_node.now_ns)
        if self.ever:
            self.came_ns |= dict.fromkeys(there - self.ever.keys(), self.server_node.now_ns)
        for name in there:  # what the API did not list once may be there again
            self.left_ns.pop(name, None)
        for pod in self.pods.all:
            self.ever.setdefault(pod.name, pod)
            by_node.setdefault(pod.node, []).append(pod)
        for name, pods in by_node.items():
            if name in self.nodes:
                for why in self.nodes[name].add(pods):
                    self._note(why)
            elif (agent := self._agents.get(name)) is not None:
                self.nodes[name] = self._node(name, agent, pods)
            elif name not in self._unwatched:
                self._unwatched.add(name)
                self._note(f"node {name}: has no agent; what happens there is not seen")

    def _node(self, name: str, agent: AgentAddress, pods: list[Pod]) -> ObservedNode:
        connection = Connection(agent.address, self.request.tls, why_gone=agent.why_gone)
        node = self._open.enter_context(
            ObservedNode(name, connection, self.directory / f"batches-{len(self.nodes)}", run=self._run)
        )
        node.begin(pods)
        self.load.add(node)
        for why in node.unseen.values():
            self._note(why)
        return node

    def _look_at_sockets(self) -> None:
        sockets = []
        for node in self.nodes.values():
            sockets += node.sockets()
        watched = [pod for node in self.in_order for pod in node.pods.values()]
        self.topology = endpoints.merged(self.topology, endpoints.topology(watched, sockets))
        server = self.pods.server.name
        ports = {one.socket.local_port for one in sockets if one.pod == server and one.socket.listens}
        self.pods.take_peers(
            one.socket.remote
            for one in sockets
            if one.pod == server and not one.socket.listens and one.socket.local_port in ports
        )
