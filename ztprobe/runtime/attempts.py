"""Connections tried from inside a pod's network, and what came of them.

Whoever tries need not be on the pod's node: what it takes of one is a `PodNetworks`, bytes in and bytes out.
Keys and what the bytes mean stay with whoever tries.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.runtime.interface import Proof

__all__ = (
    "CLOSED",
    "CONNECTED",
    "HERE",
    "REFUSED",
    "RESET",
    "SILENT",
    "PodNetworks",
    "PodNetworksHere",
    "ProofAttempt",
    "Stream",
    "connect",
)

CONNECTED, REFUSED, SILENT = "connected", "refused", "timed out"
CLOSED, RESET = "closed", "closed with a reset"  # how a stream ends
_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ProofAttempt:
    """Something that is to be tried, and what has to come of it."""

    name: str
    expected: str
    run: Callable[[], str]  # says what came of it
    passes: Callable[[str], bool]

    def judged(self, seen: str) -> Proof:
        """What that proves."""
        return Proof(name=self.name, expected=self.expected, observed=seen, passed=self.passes(seen))


class Stream(Protocol):
    """A TCP connection from a pod's network."""

    def exchange(self, data: bytes, timeout_s: float) -> tuple[bytes, str]:
        """Send, then wait for something to come; not at all with a timeout of 0.

        :returns: what came, and why nothing did: `SILENT`, `CLOSED`, `RESET`, or what the kernel says.
        """
        ...

    def close(self) -> None:
        """End it."""
        ...


class PodNetworks(Protocol):
    """The networks of pods, for who tries them."""

    def dial(self, pod: Pod, address: str, port: int, timeout_s: float) -> tuple[str, Stream | None]:
        """Connect. :returns: `CONNECTED`, `REFUSED`, `SILENT` or what the kernel says, and the connection."""
        ...

    def ask(self, pod: Pod, address: str, port: int, datagram: bytes, timeout_s: float) -> bytes | None:
        """Send a UDP datagram. :returns: the first answer; None: none came.

        :raises OSError: the kernel refuses, or somebody on the way does.
        """
        ...

    def listening(self, pod: Pod, port: int) -> AbstractContextManager[Callable[[], None]]:
        """Listen on a port of a pod's address meanwhile; what it gives ends all that has connected so far.

        :raises OSError: it cannot be listened on.
        """
        ...


class StreamHere:
    """See `Stream`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def exchange(self, data: bytes, timeout_s: float) -> tuple[bytes, str]:
        """See `Stream`."""
        try:
            if data:
                self._socket.sendall(data)
            if not timeout_s:
                return b"", ""
            self._socket.settimeout(timeout_s)
            received = self._socket.recv(_PIECE)
        except TimeoutError:
            return b"", SILENT
        except ConnectionResetError:
            return b"", RESET
        except OSError as error:
            return b"", error.strerror or str(error)
        return received, "" if received else CLOSED

    def close(self) -> None:
        """See `Stream`."""
        self._socket.close()


class PodNetworksHere:
    """`PodNetworks` of this node's pods."""

    def dial(self, pod: Pod, address: str, port: int, timeout_s: float) -> tuple[str, Stream | None]:
        """See `PodNetworks`."""
        sock = _socket_in(pod, timeout_s)
        try:
            sock.connect((address, port))
        except OSError as error:
            sock.close()
            known = {TimeoutError: SILENT, ConnectionRefusedError: REFUSED}
            return known.get(type(error), error.strerror or str(error)), None
        return CONNECTED, StreamHere(sock)

    def ask(self, pod: Pod, address: str, port: int, datagram: bytes, timeout_s: float) -> bytes | None:
        """See `PodNetworks`."""
        with _socket_in(pod, timeout_s, socket.SOCK_DGRAM) as sock:
            sock.connect((address, port))  # others' answers are none
            sock.send(datagram)
            try:
                return sock.recv(_PIECE)
            except TimeoutError:
                return None

    @contextlib.contextmanager
    def listening(self, pod: Pod, port: int) -> Iterator[Callable[[], None]]:
        """See `PodNetworks`."""
        with _socket_in(pod, 0.0) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((pod.address, port))
            listener.listen()
            yield lambda: _take_all(listener)


HERE = PodNetworksHere()


def connect(pod: Pod, address: str, port: int, timeout_s: float, networks: PodNetworks = HERE) -> str:
    """`CONNECTED`, `REFUSED`, `SILENT`, or what the kernel says."""
    said, stream = networks.dial(pod, address, port, timeout_s)
    if stream is not None:
        stream.close()
    return said


def _socket_in(pod: Pod, timeout_s: float, kind: int = socket.SOCK_STREAM) -> socket.socket:
    with entered(pod.netns):
        sock = socket.socket(socket.AF_INET, kind)
    sock.settimeout(timeout_s)
    return sock


def _take_all(listener: socket.socket) -> None:
    # A queue that is full takes nobody in, as if a policy were there.
    with contextlib.suppress(OSError):  # there are no more
        while True:
            listener.accept()[0].close()
