"""Nodes of a run through their agents: a session with each, from its first pod until the end."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ztprobe.agent.pod_access import PodAccess
from ztprobe.agent.service.client import Connection
from ztprobe.agent.service.node_session import NodeSession, addresses_by_node, process_number
from ztprobe.errors import PreflightError
from ztprobe.kubernetes.answers import Object
from ztprobe.kubernetes.pod_source import named_pod
from ztprobe.pods.model import Pod
from ztprobe.runtime.cluster import pod_states
from ztprobe.runtime.cluster.run_nodes import RunProcess, processes_by

if TYPE_CHECKING:
    from ztprobe.agent.service.wire import Tls
    from ztprobe.kubernetes.agents import AgentAddress

__all__ = ("AgentNodes", "RunAgents")

_FEW = 3


@dataclass(frozen=True, kw_only=True)
class RunAgents:
    """Through which agents a run is brought up and watched."""

    addresses: tuple[AgentAddress, ...]
    tls: Tls | None  # None: they listen on sockets of this machine


class AgentNodes:
    """See the module; a `ztprobe.runtime.cluster.run_nodes.RunNodes`.

    :param batches: directory for what they see, to be made.
    :param run: what the agents call the run.
    :param attached: see turns and process starts besides.
    :param delays: the run's profile has a delay, jitter or loss, which takes the nodes' own netem.
    """

    def __init__(
        self, agents: RunAgents, batches: Path, *, run: str, attached: bool = False, delays: str | None = None
    ) -> None:
        self._agents, self._batches, self._run = agents, batches, run
        self._attached, self._delays = attached, delays
        self._addresses: dict[str, AgentAddress] | None = None
        self._open = contextlib.ExitStack()
        self.sessions: dict[str, NodeSession] = {}  # by node, the server's first

    def look_at(self, objects: Mapping[str, Object], count: int) -> None:
        """See `RunNodes`. :raises PreflightError: a node has no agent, or it does not answer."""
        if self._addresses is None:
            self._addresses = addresses_by_node(self._agents.addresses, self._agents.tls)
        nodes = {name: where for name, pod in objects.items() if (where := pod_states.node_of(pod))}
        without = {name: where for name, where in nodes.items() if where not in self._addresses}
        if without:
            listed = ", ".join(f"{name} on {where}" for name, where in sorted(without.items())[:_FEW])
            more = f" and {len(without) - _FEW} more" if len(without) > _FEW else ""
            there = ", ".join(sorted(self._addresses)) or "none"
            raise PreflightError(
                f"{listed}{more}: no agent was asked there (agents: {there}): ztprobe deploy agent puts one"
                " on every node"
            )

    def enter(self, objects: Mapping[str, Object], server: str) -> dict[str, Pod]:
        """See `RunNodes`. Opens the sessions. :raises ZtprobeError: an agent is at work for others."""
        self.look_at(objects, len(objects))
        pods = {name: named_pod(one) for name, one in objects.items()}
        found: dict[str, Pod] = {}
        for node in dict.fromkeys([pods[server].node, *(pod.node for pod in pods.values())]):
            session = self._session(node)
            placed = session.client.place([pod for pod in pods.values() if pod.node == node])
            for why in placed.unseen.values():
                raise PreflightError(why)
            session.places |= placed.places
            session.pods |= {pod.name: pod for pod in placed.pods}
            found |= session.pods
        return {name: found[name] for name in objects}

    def _session(self, node: str) -> NodeSession:
        assert self._addresses is not None
        agent = self._addresses[node]
        connection = Connection(agent.address, self._agents.tls, why_gone=agent.why_gone)
        try:
            if self._delays is not None and connection.offers()["delay"] is None:
                raise PreflightError(
                    f"node {node}: {self._delays}: its kernel has no netem (CONFIG_NET_SCH_NETEM), and trace"
                    " puts no delay line on a cluster's node: take net0, or a rate alone such as net5"
                )
            batches = self._batches / str(len(self.sessions))
            session = NodeSession(node, connection, batches, run=self._run, attached=self._attached)
        except BaseException:
            connection.close()
            raise
        self._open.enter_context(session)
        self.sessions[node] = session
        session.sample()
        return session

    @property
    def server(self) -> NodeSession:
        """The node whose clock counts. :raises StopIteration: nothing was entered yet."""
        return next(iter(self.sessions.values()))

    def session_of(self, pod: str) -> NodeSession:
        """Of a pod's node. :raises KeyError: none of the run's has that name."""
        for session in self.sessions.values():
            if pod in session.pods:
                return session
        raise KeyError(pod)

    def access(self, pod: Pod) -> PodAccess:
        """See `RunNodes`."""
        return self.sessions[pod.node].client

    def processes(self, objects: Mapping[str, Object]) -> list[RunProcess]:
        """See `RunNodes`."""
        found = []
        for number, (node, session) in enumerate(self.sessions.items()):
            there = {name: one for name, one in objects.items() if pod_states.node_of(one) == node}
            found += processes_by(session.client, there, functools.partial(process_number, node=number))
        return found

    def close(self) -> None:
        """End the sessions: probes, profiles and all; idempotent."""
        self._open.close()
