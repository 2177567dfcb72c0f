"""Clients that nobody has named: whoever is connected to the server's ports.

The other end of a connection is looked for in every network namespace of this machine: there the socket has
the same two ends, the other way round, or the client's alone where it calls the server by an address that is
translated on the way. Who is in none of them is on another machine, and known by address.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ztprobe.attach.owner_log import OwnerLog
from ztprobe.kernelnet.sockets import TcpSocket, socket_owners, tcp_sockets
from ztprobe.pods.participants import Participants
from ztprobe.pods.process_table import ProcessTable

__all__ = ("Peers",)

_LOOPBACK = ("127.", "::1")


class Peers:
    """Turns the server's peers into participants.

    :param own_addresses: what leads back to this machine without a process of it being the peer.
    """

    def __init__(self, participants: Participants, table: ProcessTable, log: OwnerLog) -> None:
        self._participants, self._table, self._log = participants, table, log
        self._settled: set[tuple[str, int, str, int]] = set()

    def look(self, addresses: Iterable[str]) -> bool:
        """Find those who have come since the last look. :returns: whether there were any.

        :param addresses: of the machine's and the participants' namespaces: nobody there is elsewhere.
        """
        ports = {
            (end.netns, end.socket.local_port)
            for end in self._log.ends
            if end.participant == self._participants.server.name and end.socket.listens
        }
        connected = {
            (each.remote, each.remote_port, each.local, each.local_port): each
            for each in (
                end.socket
                for end in self._log.ends
                if (end.netns, end.socket.local_port) in ports and not end.socket.listens
            )
        }
        wanted = connected.keys() - self._settled
        if not wanted:
            return False
        self._settled |= wanted
        came = False
        found = self._on_this_machine(wanted)
        here = set(addresses)
        for ends in sorted(wanted):
            if (pid := found.get(ends)) is not None:
                if self._participants.of(pid) is None and self._table.get(pid) is not None:
                    self._participants.add_peer(pid)
                    came = True
            elif ends[0] not in here and not ends[0].startswith(_LOOPBACK):
                came = self._participants.add_elsewhere(ends[0]) is not None or came
        if came:
            self._log.forget_strangers()
        return came

    def _on_this_machine(
        self, wanted: Collection[tuple[str, int, str, int]]
    ) -> dict[tuple[str, int, str, int], int]:
        """The ends of connections -> the first process, by age, that has this end open."""
        by_namespace: dict[int, list[tuple[int, int]]] = {}
        for process in self._table:
            if process.netns_inode:
                by_namespace.setdefault(process.netns_inode, []).append((process.started_ticks, process.pid))
        own = {ends[:2] for ends in wanted}
        there: dict[tuple[str, int], list[TcpSocket]] = {}
        suspects: list[tuple[int, int]] = []
        for processes in by_namespace.values():
            mine = [
                socket
                for socket in tcp_sockets(min(processes)[1])
                if socket.inode and (socket.local, socket.local_port) in own
            ]
            for socket in mine:
                there.setdefault((socket.local, socket.local_port), []).append(socket)
            if mine:
                suspects += processes
        owners = socket_owners([pid for _, pid in sorted(suspects)])
        return {
            ends: owners[inode]
            for ends in wanted
            if (inode := _inode(ends, there.get(ends[:2], []))) in owners
        }


def _inode(ends: tuple[str, int, str, int], sockets: Iterable[TcpSocket]) -> int | None:
    """Of the socket with these ends, or of the one that alone has the client's address and port.

    That one calls the server by an address that is translated on the way, as a Service's is.
    """
    connected = [socket for socket in sockets if not socket.listens]
    for socket in connected:
        if _ends(socket) == ends:
            return socket.inode
    if len(connected) == 1 and not ends[0].startswith(_LOOPBACK):
        return connected[0].inode
    return None


def _ends(socket: TcpSocket) -> tuple[str, int, str, int]:
    return socket.local, socket.local_port, socket.remote, socket.remote_port
