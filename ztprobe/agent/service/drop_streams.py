"""The agent's side of watching drops: a process for each who watches, beside whatever session there is."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from threading import BoundedSemaphore, Event, Thread
from typing import Any

from ztprobe.agent.service import wire
from ztprobe.errors import EnforcementError
from ztprobe.paths import REPO_DIR

__all__ = ("DropStreams",)

_MOST = 2  # each costs a thread of the service, and the memory of its process
_LOOK_MS = 1000  # for the watcher's end; a batch comes more often
_END_S = 5.0


class DropStreams:
    """Those of one service.

    :param node: as the watchers are to call it.
    :param ending: the service ends.
    """

    def __init__(self, node: str, ending: Event) -> None:
        self._node, self._ending = node, ending
        self._free = BoundedSemaphore(_MOST)

    def messages(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """What a process says of the pods that the requests name, until either side ends it."""
        if not self._free.acquire(blocking=False):
            yield wire.encoded(
                {
                    "error": EnforcementError.__name__,
                    "message": f"{_MOST} others watch drops on node {self._node}: wait until one has ended",
                }
            )
            return
        try:
            yield from self._relayed(requests, context)
        finally:
            self._free.release()

    def _relayed(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ztprobe.agent.drop_process", str(theirs.fileno()), self._node],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # it ends with its socket, in order
                    cwd=REPO_DIR,
                )
            try:
                Thread(target=_hand_on, args=(requests, ours, context), daemon=True).start()
                said = b""
                news = select.poll()
                news.register(ours, select.POLLIN)
                while not self._ending.is_set() and context.is_active():
                    if not news.poll(_LOOK_MS):
                        continue  # it compiles
                    if not (chunk := ours.recv(1 << 20)):
                        return
                    *lines, said = (said + chunk).split(b"\n")
                    yield from lines
            finally:
                with contextlib.suppress(OSError):  # it has ended
                    ours.shutdown(socket.SHUT_RDWR)
                _end(process)


def _hand_on(requests: Iterator[bytes], connection: socket.socket, context: Any) -> None:
    try:
        for request in requests:
            connection.sendall(json.dumps(wire.decoded(request)).encode() + b"\n")
    except Exception:  # the stream has broken, or what came is no message: either ends it
        context.cancel()


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:  # it compiles, or hangs
        process.kill()
        process.wait()
