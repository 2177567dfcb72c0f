"""Costs on a pod's processes: one of them stopped around a message, at a byte that a packet socket sees;

and receive buffers small enough to fill up behind one that is stopped.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe.kernelnet.netns import entered
from ztprobe.validate.inject.scene import POLL_S, Note, Scene, prefer_this_thread

__all__ = ("ProcessStop", "ReceiveBuffer", "StopMoment")

_BULK_BYTES = 256
_SO_TIMESTAMPNS = 35
_ETH_P_IP = 0x0800
_TCP = 6
# A packet counts with all its segments, so that the usual buffer holds three of them.
_TAP_BUFFER_BYTES = 64 << 20
_SO_RCVBUFFORCE = 33
_TCP_RMEM = Path("/proc/sys/net/ipv4/tcp_rmem")
# From the event that announces a message to the stop: control frames of the one before are through by then.
_SETTLED_S = 0.1
# A message that does not come within this is not waited for: nothing may stay stopped.
_PATIENCE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class StopMoment:
    """A byte of a message, and where to look for it.

    :param pod: at whose interfaces.
    :param peer: it arrives at the pod's own interface from this pod; None: it leaves the pod's
        application for the sidecar, on loopback.
    :param bytes_before: the moment has come when so many of the message's bytes are through.
    :param flows: ... and when data of so many connections has been seen.
    """

    pod: str
    peer: str | None = None
    bytes_before: int = 0
    flows: int = 1


class ProcessStop:
    """Stops a container's process around a chosen message of each round.

    With ``moment.bytes_before`` 0 it is stopped while idle, before the message's first byte, and
    let go a while after that byte; otherwise it is stopped when so many bytes are through.

    :param stop_ms: round -> milliseconds from the moment on; 0 or missing: leave it alone.
    :param announced: the event that comes shortly before the message, and who logs it: the
        target's ``train_start``, or the server's ``wait_end`` of the round before.
    """

    def __init__(
        self,
        pod: str,
        container: str,
        moment: StopMoment,
        stop_ms: Mapping[int, float],
        *,
        announced: tuple[str, str],
    ) -> None:
        self._pod = pod
        self._container = container
        self._moment = moment
        self._stop_ms = dict(stop_ms)
        self._announced = announced

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`."""
        pid = scene.pid(self._pod, self._container)
        tap = _Tap(scene, self._moment)
        wanted: list[int] = []

        def on_event(who: str, event: dict[str, Any]) -> None:
            if (who, event["event"]) == self._announced:
                number = int(event["round"]) + (event["event"] == "wait_end")
                if self._stop_ms.get(number):
                    wanted.append(number)

        scene.follower.listen(on_event)
        done = threading.Event()
        thread = threading.Thread(target=self._run, args=(scene, tap, pid, wanted, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            tap.close()

    def _run(self, scene: Scene, tap: _Tap, pid: int, wanted: list[int], done: threading.Event) -> None:
        prefer_this_thread()
        # At the run's end the process goes away.
        with contextlib.suppress(ProcessLookupError), contextlib.ExitStack() as stack:
            stack.callback(os.kill, pid, signal.SIGCONT)
            while not done.wait(POLL_S):
                if not wanted:
                    continue
                number = wanted.pop(0)
                idle = not self._moment.bytes_before
                tap.drain()
                if idle:
                    time.sleep(_SETTLED_S)
                    os.kill(pid, signal.SIGSTOP)
                begin_ns = tap.wait(done)
                if begin_ns is not None:
                    if not idle:
                        os.kill(pid, signal.SIGSTOP)
                        begin_ns = time.monotonic_ns()
                    left_s = (begin_ns - time.monotonic_ns()) / 1e9 + self._stop_ms[number] / 1e3
                    time.sleep(max(0.0, left_s))
                os.kill(pid, signal.SIGCONT)
                end_ns = time.monotonic_ns()
                if begin_ns is not None:
                    scene.notes.append(
                        Note(kind="stop", pod=self._pod, round=number, begin_ns=begin_ns, end_ns=end_ns)
                    )


class _Tap:
    """A packet socket that waits for a `StopMoment`."""

    def __init__(self, scene: Scene, moment: StopMoment) -> None:
        pod = scene.pod(moment.pod)
        self._moment = moment
        self._peer = socket.inet_aton(scene.pod(moment.peer).address) if moment.peer else b""
        # On loopback a client's sidecar listens, but a server's application does.
        self._port = 0 if moment.peer else scene.runtime.loopback_port(pod.name) or 0
        self._port_offset = 34 if pod == scene.runtime.server else 36
        # Of one protocol a packet socket sees what arrives, and so every packet once, on loopback too.
        with entered(pod.netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        self._socket.bind((pod.interface if moment.peer else "lo", _ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _TAP_BUFFER_BYTES)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def drain(self) -> None:
        """Forget what has passed until now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(64)

    def wait(self, done: threading.Event) -> int | None:
        """When the moment's packet passed (the kernel's stamp, CLOCK_MONOTONIC ns); None: never."""
        through = 0
        flows: set[bytes] = set()
        until_s = time.monotonic() + _PATIENCE_S
        while not done.is_set() and time.monotonic() < until_s:
            if not select.select([self._socket], [], [], 0.05)[0]:
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, ancillary, _, _ = self._socket.recvmsg(128, 64)
                    if not self._is_data(frame):
                        continue
                    flows.add(frame[26:38])
                    if through >= self._moment.bytes_before and len(flows) >= self._moment.flows:
                        return _stamp_ns(ancillary)
                    through += int(struct.unpack_from(">H", frame, 16)[0])
        return None

    def _is_data(self, frame: bytes) -> bool:
        if len(frame) < 54 or frame[23] != _TCP:
            return False
        (length,) = struct.unpack_from(">H", frame, 16)
        (port,) = struct.unpack_from(">H", frame, self._port_offset)
        return length >= _BULK_BYTES and (frame[26:30] == self._peer if self._peer else port == self._port)


class ReceiveBuffer:
    """Gives a pod's sockets a small receive buffer, as hosts with little memory for it have."""

    def __init__(self, pod: str, max_bytes: int) -> None:
        self._pod = pod
        self._max_bytes = max_bytes

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`."""
        netns = scene.pod(self._pod).netns
        with entered(netns):
            before = _TCP_RMEM.read_text()
            least, usual, _ = before.split()
            _TCP_RMEM.write_text(f"{least} {min(int(usual), self._max_bytes)} {self._max_bytes}")
        try:
            yield
        finally:
            if netns.exists():
                with entered(netns):
                    _TCP_RMEM.write_text(before)


def _stamp_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    offset_ns = time.monotonic_ns() - time.time_ns()
    for _, _, payload in ancillary:
        seconds, nanoseconds = struct.unpack_from("@qq", payload)
        return int(seconds * 1_000_000_000 + nanoseconds + offset_ns)
    return time.monotonic_ns()
