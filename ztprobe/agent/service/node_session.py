"""One node of several that are watched through their agents: its session, its clocks, what it told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ztprobe.agent.interface import Account, NodeFacts
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.agent.service.wire import Tls
from ztprobe.errors import EnforcementError, ZtprobeError
from ztprobe.kubernetes.agents import AgentAddress
from ztprobe.pods.model import Pod
from ztprobe.rundir.clock import Clock, ClockSample

__all__ = ("PROCESS_SHIFT", "NodeSession", "addresses_by_node", "process_number")

_ASK_S = 10.0  # for the name of an agent's node
PROCESS_SHIFT = 24  # PID_MAX_LIMIT is 2^22 (include/linux/threads.h)


class NodeClient(AgentClient):
    """An agent whose errors say which node's it is."""

    def __init__(self, node: str, connection: Connection, batches: Path, *, run: str, attached: bool) -> None:
        self._node = node
        super().__init__(connection, batches, run=run, attached=attached)

    def _ask(self, call: str, **arguments: Any) -> Any:
        try:
            return super()._ask(call, **arguments)
        except ZtprobeError as error:
            # What nobody foresaw, such as that it has ended, leaves what was to be seen or in force undone.
            kind = EnforcementError if type(error) is ZtprobeError else type(error)
            raise kind(f"node {self._node}: {error}") from error


class NodeSession:
    """Open until the end; a context manager.

    :param name: the node's.
    :param batches: directory for what it sees.
    :param run: what its agent calls the run.
    :param attached: of a deployment that ran already: see turns and process starts besides.
    :raises ZtprobeError: the agent does not answer, or is at work for somebody else.
    """

    def __init__(self, name: str, connection: Connection, batches: Path, *, run: str, attached: bool) -> None:
        self.name, self.batches = name, batches
        self._connection = connection
        self.client = NodeClient(name, connection, batches, run=run, attached=attached)
        self.facts: NodeFacts | None = None
        self.hooks: dict[str, str] = {}
        self.pods: dict[str, Pod] = {}  # all that it ever watched, by name
        self.clock_samples: list[dict[str, int]] = []
        self._sampled_ns = 0  # of the last one, by this machine's clock
        self.account: Account | None = None  # None: it watches
        self.is_lost = False  # it did not live to tell
        # What numbers in events stand for, where the agent has not said so yet.
        self.places: dict[str, str] = {}
        self.names: dict[str, str] = {}

    def __enter__(self) -> NodeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def sample(self) -> None:
        """Read its clocks."""
        self.clock_samples.append(self.client.clock())
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

    @property
    def clock(self) -> Clock:
        """By its samples."""
        return Clock(ClockSample(**sample) for sample in self.clock_samples)

    def stop(self) -> str | None:
        """See no more, and have all that was seen. :returns: what was wrong, and where; None: nothing."""
        try:
            self.account = self.client.stop()
            self.sample()  # nothing that was seen is later
        except ZtprobeError as error:
            self.is_lost = True
            self._guess_clock()
            reasons = self.facts.drop_reasons if self.facts is not None else {}
            self.account = Account(hooks=self.hooks, coverage=0.0, drop_reasons=reasons)
            return self.named(str(error))
        return None if self.account.problem is None else self.named(self.account.problem)

    def tell_round(self, duration_s: float) -> None:
        """For whoever looks at its agent's figures; one that is older has none of rounds."""
        with contextlib.suppress(ZtprobeError):
            self._connection.tell_round(duration_s)

    def named(self, problem: str) -> str:
        """A problem with the node's name before it, once."""
        name = f"node {self.name}: "
        return name + problem.removeprefix(name)


def process_number(number: int, node: int) -> int:
    """A process's number, the same on no other node.

    :param node: its place among the nodes.
    """
    return number + (node << PROCESS_SHIFT) if number else 0


def addresses_by_node(agents: Iterable[AgentAddress], tls: Tls | None) -> dict[str, AgentAddress]:
    """Where nodes' agents listen; those whose node is not known are asked.

    :raises ZtprobeError: one does not answer.
    """
    return {one.node or _node_of(one.address, tls): one for one in agents}


def _node_of(address: str, tls: Tls | None) -> str:
    with contextlib.closing(Connection(address, tls, patience_s=_ASK_S)) as connection:
        return str(connection.status().get("node") or "")
