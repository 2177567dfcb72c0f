"""Costs on a pod's CPU: shared with a competitor."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ztprobe.validate.inject.scene import Note, Scene

__all__ = ("Competitor",)


class Competitor:
    """Pins a pod's application to one CPU and, in chosen rounds, a busy loop beside it.

    :param rounds: round -> how many busy loops while the pod trains.
    """

    def __init__(self, pod: str, container: str, rounds: Mapping[int, int]) -> None:
        self._pod = pod
        self._container = container
        self._rounds = dict(rounds)

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`."""
        cpu = max(os.sched_getaffinity(0))
        loops: list[subprocess.Popen[bytes]] = []
        begun: dict[int, int] = {}
        pinned: list[int] = []

        def on_event(who: str, event: dict[str, Any]) -> None:
            if who != self._pod:
                return
            number = int(event["round"])
            if event["event"] == "hello_sent" and not pinned:
                pinned.append(scene.pid(self._pod, self._container))
                for task in Path(f"/proc/{pinned[0]}/task").iterdir():
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(int(task.name), {cpu})
            elif event["event"] == "train_start" and self._rounds.get(number):
                begun[number] = time.monotonic_ns()
                loops.extend(_busy_loop(cpu) for _ in range(self._rounds[number]))
            elif event["event"] == "train_end" and number in begun:
                _end(loops)
                scene.notes.append(
                    Note(
                        kind="competitor",
                        pod=self._pod,
                        round=number,
                        begin_ns=begun[number],
                        end_ns=time.monotonic_ns(),
                    )
                )

        scene.follower.listen(on_event)
        try:
            yield
        finally:
            _end(loops)


def _busy_loop(cpu: int) -> subprocess.Popen[bytes]:
    program = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-I", "-S", "-c", program]
    return subprocess.Popen(command, start_new_session=True)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    processes.clear()
