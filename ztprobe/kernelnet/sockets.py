"""TCP sockets as the kernel lists them: who listens where, and what is connected to what.

``/proc/PID/net/tcp`` and ``tcp6`` show the network namespace of that process. IPv4 peers of an IPv6
socket (what gRPC opens) are shown mapped, and are IPv4 addresses here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.inet_diag import tcp_rows
from ztprobe.process.procfs import text_of

__all__ = ("SocketTables", "TcpSocket", "asked_sockets", "socket_owners", "tcp_activity", "tcp_sockets")

_ESTABLISHED, _LISTEN = "01", "0A"  # include/net/tcp_states.h
_STATES = 1 << int(_ESTABLISHED, 16) | 1 << int(_LISTEN, 16)
_PROC = Path("/proc")
_SOCKET = "socket:["  # what a descriptor of one points to, before its inode


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


def asked_sockets(pid: int) -> Iterator[TcpSocket]:
    """What `tcp_sockets` yields, asked of the kernel itself (sock_diag): a tenth of its cost and less.

    :raises OSError: this may not be asked there, the process has ended, or the dump was cut short.
    """
    netns = _PROC / str(pid) / "ns" / "net"
    for family, counts in ((socket.AF_INET, "sockstat"), (socket.AF_INET6, "sockstat6")):
        if not _has_sockets(pid, counts):
            continue
        for row in tcp_rows(netns, family, _STATES):
            listens = row.state == int(_LISTEN, 16)
            yield TcpSocket(
                local=row.local,
                local_port=row.local_port,
                remote="" if listens else row.remote,
                remote_port=0 if listens else row.remote_port,
                inode=row.inode,
                is_ipv6=":" in row.local,
            )


def _has_sockets(pid: int, file: str) -> bool:
    """Whether TCP sockets of a family are in use in a process's network namespace; for a list of them the
    kernel walks through the whole machine's table. What cannot be read may have some."""
    try:
        lines = (_PROC / str(pid) / "net" / file).read_text().splitlines()
        return any(int(line.split()[2]) > 0 for line in lines if line.startswith("TCP"))
    except FileNotFoundError:
        return file != "sockstat6"  # which is not there where the kernel has no IPv6
    except (OSError, IndexError, ValueError):
        return True


def tcp_activity(pid: int, proc: Path = _PROC) -> str | None:
    """What changes whenever a TCP socket of a process's network namespace listens, connects or has gone.

    The kernel's counters of connections made, accepted, failed, reset and open (RFC 4022's, Linux' own sums
    for the namespace), and of its sockets: a hundredth of what `tcp_sockets` costs, for which the kernel
    walks through the whole machine's table. None: the process has ended.
    """
    try:
        counters = text_of(f"{proc}/{pid}/net/snmp")
        sockets = text_of(f"{proc}/{pid}/net/sockstat")
        with contextlib.suppress(FileNotFoundError):  # the kernel has no IPv6
            sockets += text_of(f"{proc}/{pid}/net/sockstat6")
        values = [line.split() for line in counters.splitlines() if line.startswith("Tcp:")][1]
        inuse = [line.split()[2] for line in sockets.splitlines() if line.startswith("TCP")]
    except (OSError, IndexError):
        return None
    return " ".join((*values[5:10], *inuse))


class SocketTables:
    """Of several network namespaces; each is read again only where its activity has changed."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[str, list[TcpSocket]]] = {}
        self._owners: dict[int, tuple[list[TcpSocket], list[int], dict[int, int]]] = {}

    def of(self, netns: int, pids: Iterable[int]) -> list[TcpSocket]:
        """What `tcp_sockets` lists of the first of these processes that has not ended.

        :param netns: inode of the namespace that they are in.
        """
        for pid in pids:
            # Before the table: what changes while it is read is a change at the next look.
            if (activity := tcp_activity(pid)) is None:
                continue
            known = self._last.get(netns)
            # That a waiting connection is accepted changes no counter.
            if known is not None and known[0] == activity and all(one.inode for one in known[1]):
                return known[1]
            try:
                found = list(asked_sockets(pid))
            except OSError:
                found = list(tcp_sockets(pid))
            self._last[netns] = activity, found
            return found
        self._last.pop(netns, None)
        self._owners.pop(netns, None)
        return []

    def owned(self, netns: int, pids: list[int]) -> Iterator[tuple[TcpSocket, int]]:
        """Sockets of these processes, with whose each is: looked up again where sockets have changed."""
        sockets = self.of(netns, pids)
        known = self._owners.get(netns)
        if known is None or known[0] is not sockets or known[1] != pids:
            known = self._owners[netns] = sockets, pids, socket_owners(pids)
        for one in sockets:
            if (pid := known[2].get(one.inode)) is not None:
                yield one, pid


def _end(text: str) -> tuple[str, int]:
    digits, _, port = text.partition(":")
    # In words of 32 bits, each as this machine stores it.
    words = (bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8))
    packed = b"".join(word[::-1] for word in words) if sys.byteorder == "little" else b"".join(words)
    return _mapped(ipaddress.ip_address(packed)), int(port, 16)


def _mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(getattr(address, "ipv4_mapped", None) or address)


def socket_owners(pids: Iterable[int], proc: Path = _PROC) -> dict[int, int]:
    """Inode of a socket -> the first of these processes that has it open."""
    owners: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            place = f"{proc}/{pid}/fd"
            for descriptor in os.listdir(place):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"{place}/{descriptor}")
                    if target.startswith(_SOCKET):
                        owners.setdefault(int(target[len(_SOCKET) : -1]), pid)
    return owners
