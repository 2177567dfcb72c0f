"""What could be traced on this machine: processes that listen and have peers, of a known framework first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ztprobe.attach.process_evidence import Evidence
from ztprobe.kernelnet.sockets import TcpSocket, socket_owners, tcp_sockets
from ztprobe.kernelnet.tcp_ends import TcpEnd, tcp_ends
from ztprobe.pods.command_line import without_secrets
from ztprobe.pods.process_table import OneProcess, ProcessTable

__all__ = ("Server", "servers_here")

# Of what is no framework's: less is a database's chatter, more may be models.
_WORTH_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Server:
    """One that listens at a port."""

    pid: int
    command: str
    framework: str
    version: str | None
    evidence: tuple[str, ...]
    address: str
    port: int
    peers: tuple[str, ...]  # addresses, each once
    connections: int
    sent_bytes: int
    received_bytes: int
    netns_inode: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"target": f"pid:{self.pid}"}


def servers_here(*, everything: bool = False) -> list[Server]:
    """The busiest first.

    :param everything: whatever listens; else what is of a framework, or has moved a megabyte with its peers.
    """
    table = ProcessTable()
    table.look()
    by_namespace: dict[int, list[OneProcess]] = {}
    for process in table:
        if process.netns_inode and process.command:
            by_namespace.setdefault(process.netns_inode, []).append(process)
    found = [server for inside in by_namespace.values() for server in _in_namespace(inside)]
    chosen = [
        one
        for one in found
        if everything
        or one.framework != "generic"
        or (one.peers and one.sent_bytes + one.received_bytes >= _WORTH_BYTES)
    ]
    return sorted(chosen, key=lambda one: (-(one.sent_bytes + one.received_bytes), one.pid, one.port))


def _in_namespace(inside: Iterable[OneProcess]) -> list[Server]:
    processes = sorted(inside, key=lambda one: (one.started_ticks, one.pid))
    by_pid = {one.pid: one for one in processes}
    sockets = next(filter(None, (list(tcp_sockets(pid)) for pid in by_pid)), [])
    if not any(socket.listens for socket in sockets):
        return []
    owners = socket_owners(by_pid)
    totals: dict[tuple[str, int, str, int], TcpEnd] = {}
    with contextlib.suppress(OSError):
        totals = {end.key: end for end in tcp_ends(Path(f"/proc/{processes[0].pid}/ns/net"))}
    found = []
    seen = set()
    for listener in sorted(sockets, key=lambda one: one.is_ipv6):
        pid = owners.get(listener.inode)
        if listener.listens and pid is not None and (pid, listener.local_port) not in seen:
            seen.add((pid, listener.local_port))  # of both families, with the same peers
            connected = [one for one in sockets if not one.listens and one.local_port == listener.local_port]
            found.append(_server(by_pid[pid], listener, connected, totals))
    return found


def _server(
    process: OneProcess,
    listener: TcpSocket,
    connected: list[TcpSocket],
    totals: Mapping[tuple[str, int, str, int], TcpEnd],
) -> Server:
    evidence = Evidence()
    evidence.take([process])
    framework = evidence.framework()
    keys = [(one.local, one.local_port, one.remote, one.remote_port) for one in connected]
    carried = [totals[key] for key in keys if key in totals]
    return Server(
        pid=process.pid,
        command=without_secrets(process.command),
        framework=framework.name,
        version=framework.version,
        evidence=framework.evidence,
        address=listener.local,
        port=listener.local_port,
        peers=tuple(sorted({one.remote for one in connected})),
        connections=len(connected),
        sent_bytes=sum(one.acked_bytes for one in carried),
        received_bytes=sum(one.received_bytes for one in carried),
        netns_inode=process.netns_inode,
    )
