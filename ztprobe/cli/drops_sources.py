"""The kernels whose drops are told: this machine's, or those of a cluster's nodes by their agents."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from analysis.results.drops_live import Deployment, DropDecoder, DropLines, LiveDrop
from ztprobe.errors import PreflightError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from ztprobe.agent.service.drop_client import NodeDrops
    from ztprobe.cli.agent_options import AgentAccess
    from ztprobe.pods.model import Pod
    from ztprobe.probes.drop_watch import Collected, DropAccount, DropWatch

__all__ = ("AgentSource", "AgentSources", "DropSource", "HereSources", "connected")

_MOST_AT_ONCE = 5_000  # records in one go: more than so many kinds at once are counted alone
_HELLO_S = 90.0  # programs are compiled, once for each kernel
_SILENT_S = 2.0
_REST_S = 10.0
_LOOK_S = 0.05


class DropSource(Protocol):
    """One kernel's drops."""

    untold: int  # records that were too many to look at
    lines: DropLines

    def take(self, *, last: bool = False) -> Iterator[LiveDrop]:
        """What has come since the last call. :param last: there is no more to come."""
        ...

    def now_ns(self) -> int:
        """That kernel's CLOCK_MONOTONIC."""
        ...

    def account(self) -> DropAccount:
        """What became of all drops there so far."""
        ...


class _Decoded:
    # What sources have in common.

    def __init__(self) -> None:
        self.untold = 0
        self.lines = DropLines()

    def _told(
        self, decoder: DropDecoder, rows: np.ndarray, counted: Iterable[Collected]
    ) -> Iterator[LiveDrop]:
        yield from decoder.records(rows)
        for each in counted:
            more = decoder.counted(each.kind, each.packets, each.payload_bytes, each.last_ns)
            if more is not None:
                yield more


class _HereSource(_Decoded):
    """This machine's.

    :param watch: loaded.
    """

    def __init__(self, watch: DropWatch) -> None:
        from ztprobe.probes.kallsyms import Kallsyms

        super().__init__()
        symbols = Kallsyms()
        symbols.name_of(1)  # read now, not when the first packet is dropped
        self._watch = watch
        self._watched: set[int] = set()
        self._decoder = DropDecoder(
            watch.kind_type, watch.reason_names, symbols.name_of, time.time_ns() - time.monotonic_ns()
        )

    def know(self, deployments: Sequence[Deployment]) -> None:
        """Watch these from now on."""
        wanted = {inode for one in deployments for inode in one.places}
        for inode in self._watched - wanted:
            self._watch.forget(inode)
        for inode in wanted - self._watched:
            self._watch.watch(inode)
        self._watched = wanted
        self._decoder.know(deployments)

    def take(self, *, last: bool = False) -> Iterator[LiveDrop]:
        """See `DropSource`."""
        rows, counted = self._watch.read(last=last)
        self.untold += max(0, len(rows) - _MOST_AT_ONCE)
        return self._told(self._decoder, rows[:_MOST_AT_ONCE], counted)

    def now_ns(self) -> int:
        """See `DropSource`."""
        return time.monotonic_ns()

    def account(self) -> DropAccount:
        """See `DropSource`."""
        return self._watch.account()


class HereSources:
    """This machine's kernel alone.

    :param watch: loaded.
    """

    def __init__(self, watch: DropWatch) -> None:
        self._watch = watch
        self._only = _HereSource(watch)
        self.sources = [self._only]

    def know(self, deployments: Sequence[Deployment], pods: Sequence[Pod]) -> None:
        """Watch these from now on."""
        self._only.know(deployments)

    def start(self) -> None:
        """Begin to see. :raises PreflightError: the kernel refuses."""
        self._watch.start()

    def wait(self, timeout_s: float) -> None:
        """Until something comes, or the time is over."""
        self._watch.wait(timeout_s)

    def stop(self) -> None:
        """See no more."""
        self._watch.stop()


class AgentSource(_Decoded):
    """A node's, by its agent, which has answered."""

    def __init__(self, node: str, drops: NodeDrops) -> None:
        super().__init__()
        self.node, self.drops = node, drops
        self._hello = drops.hello
        self._decoder = self._made()
        self._known: Deployment | None = None
        self._places: Mapping[int, str] = {}
        self._given: Sequence[Pod] | None = None

    def _made(self) -> DropDecoder:
        if self._hello is None:
            raise RuntimeError("the agent has to answer first")
        return DropDecoder(
            self.drops.kind_type, self._hello.reasons, self.drops.symbol, self._hello.unix_offset_ns
        )

    def know(self, deployment: Deployment, pods: Sequence[Pod]) -> None:
        """Watch these pods from now on.

        :param deployment: as it is on this clock; where pods are, the agent says.
        """
        if pods != self._given:
            self.drops.give(pods)
            self._given = pods
        # What was in force when, in the agent's time.
        shift_ns = self.drops.now_ns() - time.monotonic_ns()
        explainers = [(since and since + shift_ns, each) for since, each in deployment.explainers]
        self._known = dataclasses.replace(deployment, explainers=explainers)
        self._decoder.know([dataclasses.replace(self._known, places=self._places)])

    @property
    def has_looked(self) -> bool:
        """Whether it has said where the pods are that it was given."""
        return not self._given or bool(self.drops.places or self.drops.unseen or self.drops.problem)

    def take(self, *, last: bool = False) -> Iterator[LiveDrop]:
        """See `DropSource`."""
        for batch in self.drops.read():
            if self.drops.hello is not self._hello:  # the agent was started again
                self._hello = self.drops.hello
                self._decoder, self._places = self._made(), {}
            if batch.places != self._places and self._known is not None:
                self._places = batch.places
                self._decoder.know([dataclasses.replace(self._known, places=self._places)])
            self.untold += batch.untold
            yield from self._told(self._decoder, batch.rows, batch.counted)

    def now_ns(self) -> int:
        """See `DropSource`."""
        return self.drops.now_ns()

    def account(self) -> DropAccount:
        """See `DropSource`."""
        return self.drops.account()


class AgentSources:
    """All agents that answered; a context manager that leaves them."""

    def __init__(self, news: threading.Event, asked: Sequence[tuple[str, NodeDrops]]) -> None:
        self._news, self._asked = news, asked
        self.sources: list[AgentSource] = []
        self._said: dict[str, str] = {}  # address -> the problem that was told last
        for node, drops in asked:
            self._admit(node, drops)

    def _admit(self, node: str, drops: NodeDrops) -> None:
        if drops.hello is not None:
            name = node or drops.hello.node
            if any(name == other.node for other in self.sources):
                raise UsageError(
                    f"--agent {drops.address}: is the agent of {name}, which another one is, too"
                )
            self.sources.append(AgentSource(name, drops))

    def __enter__(self) -> AgentSources:
        return self

    def __exit__(self, *_: object) -> None:
        for _node, drops in self._asked:
            drops.close()

    @property
    def reasons(self) -> set[str]:
        """The names that any of the nodes' kernels has."""
        return {
            name
            for source in self.sources
            if source.drops.hello
            for name in source.drops.hello.reasons.values()
        }

    @property
    def asked_nodes(self) -> set[str]:
        """Those of which the cluster says that they have an agent."""
        return {node for node, _ in self._asked if node}

    @property
    def nodes(self) -> list[str]:
        """Whose agents have answered."""
        return [source.node for source in self.sources]

    def know(self, deployments: Sequence[Deployment], pods: Sequence[Pod]) -> None:
        """Watch these from now on; a deployment for each node, in the nodes' order."""
        for source, deployment in zip(self.sources, deployments, strict=True):
            source.know(deployment, [pod for pod in pods if pod.node == source.node])

    def start(self) -> None:
        """Returns when the agents have found their pods, or it is late."""
        end_s = time.monotonic() + _REST_S
        while not all(source.has_looked for source in self.sources) and time.monotonic() < end_s:
            time.sleep(_LOOK_S)

    def wait(self, timeout_s: float) -> None:
        """Until something comes, or the time is over."""
        self._news.wait(timeout_s)
        self._news.clear()

    def fresh_problems(self) -> Collection[str]:
        """For people, a line for each agent that does not answer, or answers again, since the last time."""
        found = []
        known = {id(source.drops) for source in self.sources}
        for node, drops in self._asked:
            if id(drops) not in known:
                self._admit(node, drops)
            before, now = self._said.get(drops.address), drops.problem
            name = node or (drops.hello.node if drops.hello is not None else "")
            where = f"node {name}: " if name else ""
            if now is not None and before is None:
                found.append(f"{where}{now}; what is dropped there is not seen")
                self._said[drops.address] = now
            elif now is None and before is not None:
                found.append(f"{where}the agent at {drops.address} answers again")
                del self._said[drops.address]
        return found

    def stop(self) -> None:
        """See no more; returns when the rest has come, or it is late."""
        for source in self.sources:
            source.drops.stop()
        end_s = time.monotonic() + _REST_S
        for source in self.sources:
            while not source.drops.is_over and source.drops.problem is None:
                if time.monotonic() > end_s:
                    return
                time.sleep(_LOOK_S)


def connected(access: AgentAccess, tell: Callable[[str], None]) -> AgentSources:
    """Ask every agent, all at once, and wait until each has answered or does not.

    :param tell: what takes long, for people.
    :raises PreflightError: none answers; says why the first one does not.
    """
    from ztprobe.agent.service.client import Connection
    from ztprobe.agent.service.drop_client import NodeDrops

    agents, tls, news = access.agents(), access.tls(), threading.Event()
    asked = [
        (
            one.node,
            NodeDrops(Connection(one.address, None if one.address.startswith("unix:") else tls), news),
        )
        for one in agents
    ]
    begun_s, has_said = time.monotonic(), False
    try:
        while any(one.hello is None and one.problem is None for _, one in asked):
            lasts_s = time.monotonic() - begun_s
            if lasts_s > _HELLO_S:
                break
            if lasts_s > _SILENT_S and not has_said:
                has_said = True
                tell(f"waiting for the agents at {', '.join(one.address for _, one in asked)}")
            news.wait(_LOOK_S)
            news.clear()
        made = AgentSources(news, asked)
        if not made.sources:
            problems = [one.problem for _, one in asked if one.problem is not None]
            raise PreflightError(problems[0] if problems else "no agent has answered in time")
    except BaseException:
        for _, one in asked:
            one.close()
        raise
    return made
