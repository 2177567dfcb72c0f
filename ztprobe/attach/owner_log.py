"""Whose each end of a connection is, looked up again and again while participants run.

A look reads a namespace's socket table where the kernel's counters say that something has changed, and the
participants' open files only where there is a socket that was not there before. What is open between two
looks alone is told by the threads that used it (`ztprobe.attach.owners`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ztprobe.events.owners import AT_ATTACHMENT, WHILE_RUNNING
from ztprobe.kernelnet.sockets import SocketTables, TcpSocket, socket_owners

__all__ = ("OwnedEnd", "OwnerLog")


@dataclass(kw_only=True)
class OwnedEnd:
    """A socket and whose it was, from when to when that was seen."""

    netns: int
    socket: TcpSocket
    pid: int
    participant: str
    first_seen_ns: int
    last_seen_ns: int
    found: str
    older: bool = False

    def as_row(self, pod: str) -> dict[str, Any]:
        """As `ztprobe.events.owners.OWNERS` has it."""
        return {
            "first_seen_ns": self.first_seen_ns,
            "pod": pod,
            "last_seen_ns": self.last_seen_ns,
            "participant": self.participant,
            "pid": self.pid,
            "local": self.socket.local,
            "local_port": self.socket.local_port,
            "remote": self.socket.remote,
            "remote_port": self.socket.remote_port,
            "family": "ipv6" if self.socket.is_ipv6 else "ipv4",
            "found": self.found,
            "older": int(self.older),
            "netns": self.netns,
        }


class OwnerLog:
    """What was seen so far.

    :param whose: a process's participant by name; None: nobody's.
    """

    def __init__(self, whose: Callable[[int], str | None]) -> None:
        self._whose = whose
        self._known: dict[tuple[int, TcpSocket], OwnedEnd | None] = {}  # None: not a participant's
        self.ends: list[OwnedEnd] = []
        self.strangers: list[tuple[int, TcpSocket]] = []  # connected, of nobody, as of the last look
        self._tables = SocketTables()

    def look(self, namespaces: Mapping[int, Iterable[int]], *, at_attachment: bool = False) -> None:
        """See whose sockets are there now.

        :param namespaces: inode -> the participants' processes in it.
        :param at_attachment: nothing is watched yet: what is connected now is older.
        """
        now_ns = time.monotonic_ns()
        there: set[tuple[int, TcpSocket]] = set()
        self.strangers = []
        for netns, processes in namespaces.items():
            pids = list(processes)
            sockets = self._tables.of(netns, pids)
            there |= {(netns, socket) for socket in sockets}
            fresh = [socket for socket in sockets if socket.inode and (netns, socket) not in self._known]
            owners = socket_owners(pids) if fresh else {}
            for socket in fresh:
                self._keep(netns, socket, owners.get(socket.inode), now_ns, at_attachment)
            for socket in sockets:
                end = self._known.get((netns, socket))
                if end is not None:
                    end.last_seen_ns = now_ns
                elif not socket.listens:
                    self.strangers.append((netns, socket))
        for key in self._known.keys() - there:
            del self._known[key]

    def whose_end(self, netns: int, key: tuple[str, int, str, int]) -> str | None:
        """The participant that has such an end open, as of the last look; None: nobody's.

        :param key: local address and port, remote address and port.
        """
        for (place, socket), end in self._known.items():
            if place == netns and end is not None and _key(socket) == key:
                return end.participant
        return None

    def forget_strangers(self) -> None:
        """Somebody has become a participant: look again at sockets that were nobody's."""
        self._known = {key: end for key, end in self._known.items() if end is not None}

    def _keep(self, netns: int, socket: TcpSocket, pid: int | None, now_ns: int, at_attachment: bool) -> None:
        participant = self._whose(pid) if pid is not None else None
        if pid is None or participant is None:
            self._known[netns, socket] = None
            return
        end = OwnedEnd(
            netns=netns,
            socket=socket,
            pid=pid,
            participant=participant,
            first_seen_ns=now_ns,
            last_seen_ns=now_ns,
            found=AT_ATTACHMENT if at_attachment else WHILE_RUNNING,
            older=at_attachment and not socket.listens,
        )
        self._known[netns, socket] = end
        self.ends.append(end)


def _key(socket: TcpSocket) -> tuple[str, int, str, int]:
    return socket.local, socket.local_port, socket.remote, socket.remote_port
