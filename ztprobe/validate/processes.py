"""Costs on a pod's processes: its sidecar stopped, its CPU shared with a competitor."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ztprobe.netns import entered
from ztprobe.validate.scene import POLL_S, Note, Scene, prefer_this_thread

__all__ = ("Competitor", "SidecarStop")

_BULK_BYTES = 256
_SO_TIMESTAMPNS = 35


class SidecarStop:
    """Stops a pod's idle sidecar before the update's first byte, and lets it go a while after that byte.

    :param stop_ms: round -> milliseconds from the first byte on; 0 or missing: leave it alone.
    """

    def __init__(self, pod: str, stop_ms: Mapping[int, float]) -> None:
        self._pod = pod
        self._stop_ms = dict(stop_ms)

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`."""
        pod = scene.pod(self._pod)
        pid = scene.pid(self._pod, "proxy")
        with entered(pod.netns):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        tap.bind(("lo", 0x0800))
        tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        wanted: list[int] = []
        scene.follower.listen(
            lambda who, event: (
                wanted.append(int(event["round"]))
                if who == self._pod and event["event"] == "train_start" and self._stop_ms.get(event["round"])
                else None
            )
        )
        done = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(scene, tap, pid, pod.loopback_port or 0, wanted, done), daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            tap.close()

    def _run(
        self,
        scene: Scene,
        tap: socket.socket,
        pid: int,
        port: int,
        wanted: list[int],
        done: threading.Event,
    ) -> None:
        prefer_this_thread()
        try:
            while not done.wait(POLL_S):
                if not wanted:
                    continue
                number = wanted.pop(0)
                # The model's last control frames are through by then, the update is not yet begun.
                time.sleep(0.1)
                _drain(tap)
                os.kill(pid, signal.SIGSTOP)
                first_ns = _first_bulk_ns(tap, port, done)
                if first_ns is not None:
                    left_s = (first_ns - time.monotonic_ns()) / 1e9 + self._stop_ms[number] / 1e3
                    time.sleep(max(0.0, left_s))
                os.kill(pid, signal.SIGCONT)
                end_ns = time.monotonic_ns()
                if first_ns is not None:
                    scene.notes.append(
                        Note(kind="stop", pod=self._pod, round=number, begin_ns=first_ns, end_ns=end_ns)
                    )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


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


def _drain(tap: socket.socket) -> None:
    tap.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            tap.recv(64)


def _first_bulk_ns(tap: socket.socket, port: int, done: threading.Event) -> int | None:
    """When the first message's first packet to ``port`` passed, by the kernel's stamp."""
    while not done.is_set():
        if not select.select([tap], [], [], 0.05)[0]:
            continue
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, ancillary, _, _ = tap.recvmsg(128, 64)
                length = struct.unpack_from(">H", frame, 16)[0] if len(frame) > 54 else 0
                if length < _BULK_BYTES or frame[23] != 6 or struct.unpack_from(">H", frame, 36)[0] != port:
                    continue
                offset_ns = time.monotonic_ns() - time.time_ns()
                for _, _, payload in ancillary:
                    seconds, nanoseconds = struct.unpack_from("@qq", payload)
                    return int(seconds * 1_000_000_000 + nanoseconds + offset_ns)
    return None
