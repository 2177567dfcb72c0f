"""Connections tried from inside a pod's network, and what came of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.runtime.interface import Proof

__all__ = ("CONNECTED", "REFUSED", "SILENT", "ProofAttempt", "connect", "socket_in")

CONNECTED, REFUSED, SILENT = "connected", "refused", "timed out"


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


def socket_in(pod: Pod, timeout_s: float) -> socket.socket:
    """A TCP socket of a pod's network."""
    with entered(pod.netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    return sock


def connect(pod: Pod, address: str, port: int, timeout_s: float) -> str:
    """`CONNECTED`, `REFUSED`, `SILENT`, or what the kernel says."""
    with socket_in(pod, timeout_s) as sock:
        try:
            sock.connect((address, port))
        except TimeoutError:
            return SILENT
        except ConnectionRefusedError:
            return REFUSED
        except OSError as error:
            return error.strerror or str(error)
    return CONNECTED
