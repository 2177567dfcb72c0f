"""What injectors act on: the run's pods, its events as they are logged, and a notebook.

Every injector is a context manager, told about the run by a `Follower`, which reads the
workload's own events as they come. Times in notes are CLOCK_MONOTONIC, read around the
act itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ztprobe.errors import WorkloadError
from ztprobe.pods.model import Pod
from ztprobe.rundir.logs import GrowingLog
from ztprobe.runtime.interface import Runtime

__all__ = ("POLL_S", "Follower", "Injector", "Note", "Scene", "prefer_this_thread")

POLL_S = 0.002


@dataclass(frozen=True, kw_only=True)
class Note:
    """One act on one pod, from begin to end (CLOCK_MONOTONIC ns)."""

    kind: str
    pod: str
    round: int
    begin_ns: int
    end_ns: int


class Follower:
    """Reads the pods' logs as they grow and tells who asked; a context manager."""

    def __init__(self, logs: Mapping[str, Path]) -> None:
        self._logs = {pod: GrowingLog(path) for pod, path in logs.items()}
        self._listeners: list[Callable[[str, dict[str, Any]], None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self.round = 0  # the one that the server is in; 0 before the first

    def listen(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Call ``listener(pod, event)`` for every event, from the follower's thread; it must not block."""
        self._listeners.append(listener)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            for pod, log in self._logs.items():
                for event in log.fresh():
                    if event["event"] == "round_start":
                        self.round = int(event["round"])
                    for listener in self._listeners:
                        listener(pod, event)


@dataclass(kw_only=True)
class Scene:
    """What injectors act on."""

    runtime: Runtime
    server_port: int  # at which other pods reach the server
    follower: Follower
    state_dir: Path
    notes: list[Note] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def pods(self) -> list[Pod]:
        """The experiment's pods, server first, then edge aggregators."""
        return [self.runtime.server, *self.runtime.edges, *self.runtime.clients]

    def pod(self, name: str) -> Pod:
        """One of them. :raises KeyError: there is none of that name."""
        return {pod.name: pod for pod in self.pods}[name]

    def pid(self, pod: str, container: str) -> int:
        """The (first) process of a container. :raises WorkloadError: it does not run."""
        for pid, where in sorted(self.runtime.source.processes(self.pods).items()):
            if where == (pod, container):
                return pid
        raise WorkloadError(f"{pod}/{container} does not run")


# Enters the injection on a scene; leaving it undoes what is left of it.
Injector = Callable[[Scene], AbstractContextManager[None]]


def prefer_this_thread() -> None:
    """Let the calling thread go first, as far as the machine allows."""
    # Timers beside busy clients: a late release is noted as such, but it should not be the rule.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_RR, os.sched_param(1))
