"""The agents of a run's nodes as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ztprobe.agent import endpoints
from ztprobe.agent.counts import Counts, added
from ztprobe.agent.endpoints import OwnedSocket
from ztprobe.agent.interface import Account, Measurement, Status
from ztprobe.agent.service.node_session import NodeSession, process_number
from ztprobe.conformance.judgement import requested
from ztprobe.experiment.nodes.accounts import account_of
from ztprobe.experiment.nodes.path import measured_path
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes
from ztprobe.profile.model import Profile
from ztprobe.runtime.cluster.agent_nodes import AgentNodes

__all__ = ("NodesAgent",)


class NodesAgent:
    """`ztprobe.agent.interface.Agent` of pods wherever they are.

    :param nodes: entered before `prepare`.
    """

    def __init__(self, nodes: AgentNodes) -> None:
        self._nodes = nodes
        self._profile: Profile | None = None
        self._backend = ""
        self._watched: Processes = {}

    @property
    def _sessions(self) -> Sequence[NodeSession]:
        return list(self._nodes.sessions.values())

    def prepare(self) -> None:
        """See `Agent`."""
        for session in self._sessions:
            session.client.prepare()
            session.facts = session.client.facts()

    def add_pod(self, pod: Pod) -> None:
        """See `Agent`."""
        self._nodes.session_of(pod.name).client.add_pod(pod)

    def remove_pod(self, pod: Pod) -> None:
        """See `Agent`."""
        self._nodes.session_of(pod.name).client.remove_pod(pod)

    def watch(self, processes: Processes) -> None:
        """See `Agent`; processes go by their numbers among all nodes'."""
        if processes == self._watched:
            return
        for number, session in enumerate(self._sessions):
            base = process_number(1, number) - 1
            own = {pid - base: who for pid, who in processes.items() if who[0] in session.pods}
            session.names |= {str(pid): "/".join(who) for pid, who in own.items()}
            session.client.watch(own)
        self._watched = dict(processes)

    def start(self) -> dict[str, str]:
        """See `Agent`; of the server's node, and what others have besides."""
        hooks: dict[str, str] = {}
        for session in self._sessions:
            session.hooks = session.client.start()
            hooks = session.hooks | hooks
        return hooks

    def apply(self, profile: Profile, *, seed: int) -> str:
        """See `Agent`."""
        backends = [session.client.apply(profile, seed=seed) for session in self._sessions]
        self._profile, self._backend = profile, " and ".join(dict.fromkeys(backends))
        return self._backend

    def measure(self, server: str, clients: Sequence[str]) -> Measurement:
        """See `Agent`; between nodes as `ztprobe.experiment.nodes.path` tells."""
        if self._profile is None:
            raise RuntimeError("apply() comes first")
        if len(self._sessions) == 1:
            return self._sessions[0].client.measure(server, clients)
        measured, offsets = measured_path(self._nodes.sessions, server, clients, self._profile)
        clocks = {"wall_clocks_ahead_ms": {node: ahead / 1e6 for node, ahead in offsets.items()}}
        return Measurement(
            backend=self._backend,
            requested=requested(self._profile),
            measured=measured.as_dict(),
            details=measured.details() | clocks,
            summary=measured.summary(),
            problems=measured.problems(self._profile.steps[0]),
        )

    def follow(self) -> None:
        """See `Agent`."""
        for session in self._sessions:
            session.client.follow()

    def status(self) -> Status:
        """See `Agent`."""
        problem, notes = None, []
        for session in self._sessions:
            found = session.client.status()
            notes += [session.named(note) for note in found.notes]
            if problem is None and found.problem is not None:
                problem = session.named(found.problem)
        return Status(problem=problem, notes=notes)

    def topology(self) -> dict[str, Any]:
        """See `Agent`."""
        pods: list[Pod] = []
        sockets: list[OwnedSocket] = []
        for session in self._sessions:
            pods += session.pods.values()
            sockets += session.client.sockets()
        return endpoints.topology(pods, sockets)

    def counters(self) -> dict[str, Any]:
        """See `Agent`; all of them within moments, so one time stands for all."""
        found: dict[str, Any] = {"at_ns": self._nodes.server.now_ns, "pods": {}, "containers": {}}
        for session in self._sessions:
            told = session.client.counters()
            for kind in ("pods", "containers"):
                found[kind] |= told[kind]
        return found

    def tally(self) -> Counts:
        """See `Agent`."""
        counts: Counts = {}
        for session in self._sessions:
            added(counts, session.client.tally())
        return counts

    def stop(self) -> Account:
        """See `Agent`. What an agent cannot tell any more is the account's problem."""
        # The server's last: all that others saw is earlier than its last sample.
        problems = [problem for session in reversed(self._sessions) if (problem := session.stop())]
        account = account_of(self._sessions)
        return account if not problems else replace(account, problem=problems[0])

    def close(self) -> None:
        """See `Agent`."""
        self._nodes.close()
