"""The rounds of a run while they go on: what the server logs of them, and who or what they wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from analysis.report.wording import plural
from ztprobe.agent.stall_look import Look
from ztprobe.agent.stalls import stall_words
from ztprobe.errors import WorkloadError
from ztprobe.experiment.spec import RunSpec
from ztprobe.experiment.stalling import RunStalls
from ztprobe.experiment.waiting import Waiting, words
from ztprobe.progress import Progress
from ztprobe.runtime.interface import Runtime

__all__ = ("RoundFollower",)


class RoundFollower:
    """Begins when the clients are started.

    :param peers: whoever talks to the server: where there are edges, no client does.
    :param look: looks at all pods.
    """

    def __init__(
        self,
        spec: RunSpec,
        runtime: Runtime,
        progress: Progress,
        peers: Sequence[str],
        look: Callable[[], Look],
    ) -> None:
        now_s = time.monotonic()
        self._spec = spec
        self._runtime = runtime
        self._progress = progress
        self._starts_ns: dict[Any, int] = {}
        self._waiting = Waiting(peers, now_s)
        self._latest_s = None if spec.limit_s is None else now_s + spec.limit_s
        self.stalls = RunStalls(
            runtime.server.name,
            peers,
            look,
            since_s=now_s,
            after_s=spec.stall_after_s,
            deadline_s=runtime.facts().get("round_deadline_s"),
        )

    @property
    def begun(self) -> str:
        """How many rounds have begun, in words."""
        return plural(len(self._starts_ns), "round")

    def take(self, events: Iterable[Mapping[str, Any]]) -> bool:
        """Events of the server; whether now is the time to look who is connected: until a round has begun,
        and whenever one begins."""
        is_time = not self._starts_ns
        for event in events:
            self._waiting.take(event)
            self.stalls.take(event)
            number = event.get("round")
            if event["event"] == "round_start":
                self._starts_ns[number] = event["time_monotonic_ns"]
                is_time = True
            elif event["event"] == "round_end" and number in self._starts_ns:
                duration_s = (event["time_monotonic_ns"] - self._starts_ns[number]) / 1e9
                self._progress.round_done(int(number or 0), self._spec.options.rounds, duration_s)
        return is_time

    def look(self) -> None:
        """Say who is waited for, and what stands still.

        :raises WorkloadError: the rounds take longer than they may.
        """
        now_s = time.monotonic()
        if self._latest_s is not None and now_s > self._latest_s:
            raise WorkloadError(f"not through after {self._spec.limit_s:.0f} s: {self.begun} begun")
        if (missing := self._waiting.overdue(now_s)) is not None:
            said = self._runtime.last_words(missing[0], "client") if missing else ""
            self._progress.note(words(missing, said))
        if (stall := self.stalls.overdue(now_s)) is not None:
            self._progress.note(stall_words(stall))
