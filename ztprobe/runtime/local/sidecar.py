"""When a sidecar is ready: it listens, and knows where its server is.

haproxy resolves the server's name by itself, in the background; a connection that
comes before the first answer is closed. Its statistics socket says when that is done.
It has an abstract name, which exists in the pod's network namespace only.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ztprobe.kernelnet.netns import entered

__all__ = ("backends_ready",)

# haproxy's `abns@` pads the name with zeros to the whole of sockaddr_un.sun_path.
_SOCKET = b"\0fl-proxy".ljust(108, b"\0")
_RUNNING = "2"  # SRV_ST_RUNNING in srv_op_state
_TIMEOUT_S = 1.0


def backends_ready(netns: Path) -> bool:
    """Whether every server of the pod's haproxy has an address and takes connections."""
    with entered(netns):
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with control:
        control.settimeout(_TIMEOUT_S)
        try:
            control.connect(_SOCKET)
            control.sendall(b"show servers state\n")
            answer = b"".join(iter(lambda: control.recv(65536), b"")).decode()
        except OSError:
            return False
    # The first line is the format's version, the second names the columns after "# ".
    lines = [line.split(" ") for line in answer.splitlines() if line]
    columns = lines[1][1:]
    servers = [dict(zip(columns, line, strict=False)) for line in lines[2:]]
    return bool(servers) and all(
        s["srv_addr"] != "-" and s["srv_op_state"] == _RUNNING and s["srv_admin_state"] == "0"
        for s in servers
    )
