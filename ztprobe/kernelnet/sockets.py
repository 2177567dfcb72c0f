"""TCP sockets as the kernel lists them: who listens where, and what is connected to what.

``/proc/PID/net/tcp`` and ``tcp6`` show the network namespace of that process. IPv4 peers of an IPv6
socket (what gRPC opens) are shown mapped, and are IPv4 addresses here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ("TcpSocket", "socket_owners", "tcp_sockets")

_ESTABLISHED, _LISTEN = "01", "0A"  # include/net/tcp_states.h
_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class TcpSocket:
    """One that listens (``remote`` is empty, ``remote_port`` 0) or is connected."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    inode: int  # 0: nobody has accepted it yet
    is_ipv6: bool = False  # of its packets; an IPv6 socket may carry IPv4

    @property
    def listens(self) -> bool:
        """Whether it waits for connections."""
        return not self.remote


def tcp_sockets(pid: int, proc: Path = _PROC) -> Iterator[TcpSocket]:
    """Listening and established sockets in a process's network namespace; none if it has ended."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / str(pid) / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *more = line.split()
            if state in (_ESTABLISHED, _LISTEN):
                here, here_port = _end(local)
                there, there_port = _end(remote) if state == _ESTABLISHED else ("", 0)
                yield TcpSocket(
                    local=here,
                    local_port=here_port,
                    remote=there,
                    remote_port=there_port,
                    inode=int(more[5]),
                    is_ipv6=":" in here,
                )


def _end(text: str) -> tuple[str, int]:
    digits, _, port = text.partition(":")
    # In words of 32 bits, each as this machine stores it.
    words = (bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8))
    packed = b"".join(word[::-1] for word in words) if sys.byteorder == "little" else b"".join(words)
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), int(port, 16)


def socket_owners(pids: Iterable[int], proc: Path = _PROC) -> dict[int, int]:
    """Inode of a socket -> the first of these processes that has it open."""
    owners: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for descriptor in (proc / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    kind, _, inode = os.readlink(descriptor).partition(":")
                    if kind == "socket":
                        owners.setdefault(int(inode.strip("[]")), pid)
    return owners
