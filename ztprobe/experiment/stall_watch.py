"""Why a run hangs: stalls of its rounds, and of the way to the first one, by looks at its pods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ztprobe.agent.stall_snapshot import StallLook
from ztprobe.agent.stalls import Stall, StallWatch, Timeout
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes
from ztprobe.runtime.interface import Runtime

__all__ = ("RunStalls", "processes_of", "stalls_of", "workload_pods")

_DEADLINE = "the server's deadline (FL_ROUND_DEADLINE_S)"


def workload_pods(runtime: Runtime) -> tuple[Pod, ...]:
    """Those that take part in the rounds."""
    return (runtime.server, *runtime.edges, *runtime.clients)


def processes_of(runtime: Runtime) -> Processes:
    """What runs in them now."""
    return runtime.source.processes(workload_pods(runtime))


def stalls_of(
    runtime: Runtime, clients: Iterable[str], look: Callable[[], StallLook], *, since_s: float, after_s: float
) -> RunStalls:
    """Watch a run whose clients have just been started; see `RunStalls`."""
    return RunStalls(
        runtime.server.name,
        clients,
        look,
        since_s=since_s,
        after_s=after_s,
        deadline_s=runtime.facts().get("round_deadline_s"),
    )


class RunStalls:
    """The stalls of one run.

    :param server: its pod.
    :param clients: who is to contribute to each round.
    :param look: looks at all pods.
    :param since_s: when the clients were started (CLOCK_MONOTONIC of the server's node, as all times here).
    :param after_s: how long nothing must go on.
    :param deadline_s: how long the server waits for its clients, and in each round for their updates; None:
        not known.
    """

    def __init__(
        self,
        server: str,
        clients: Iterable[str],
        look: Callable[[], StallLook],
        *,
        since_s: float,
        after_s: float,
        deadline_s: float | None = None,
    ) -> None:
        self._server = server
        self._clients = list(clients)
        self._look = look
        self._since_s = since_s
        self._deadline_s = deadline_s
        self._watch = StallWatch(after_s, since_s=since_s)
        self._round: int | None = None
        self._is_open = True  # something is waited for
        self._came: set[str] = set()
        self.found: list[Stall] = []

    def take(self, event: Mapping[str, Any]) -> None:
        """An event of the server."""
        self._watch.moved()
        kind = event.get("event")
        if kind == "round_start":
            self._round, self._is_open, self._came = event.get("round"), True, set()
            self._since_s = event["time_monotonic_ns"] / 1e9
        elif kind == "round_end":
            self._is_open = False
        elif kind == "update_received" or (kind == "client_ready" and self._round is None):
            self._came.add(str(event.get("client_id")))

    def overdue(self, now_s: float) -> Stall | None:
        """A stall, once each time; looks only now and then."""
        if not self._is_open or not self._watch.due(now_s):
            return None
        missing = [client for client in self._clients if client not in self._came]
        timeouts = []
        if self._deadline_s is not None and missing:
            left_s = self._since_s + self._deadline_s - now_s
            timeouts.append(Timeout(what=_DEADLINE, in_s=max(0.0, left_s)))
        stall = self._watch.take(
            self._look(),
            waiting=self._server,
            waits_for=missing,
            round_number=self._round,
            timeouts=timeouts,
        )
        if stall is not None:
            self.found.append(stall)
        return stall
