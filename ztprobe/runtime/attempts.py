"""Connections tried from inside a pod's network, and what came of them."""

from __future__ import annotations

import socket

from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod

__all__ = ("CONNECTED", "REFUSED", "SILENT", "connect", "socket_in")

CONNECTED, REFUSED, SILENT = "connected", "refused", "timed out"


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
