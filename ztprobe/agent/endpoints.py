"""Who serves whom, by the sockets that pods have open: endpoints, connections, sidecars.

Nothing here comes from a manifest. A container serves where it listens, and is behind a sidecar where
it and another container of its pod are connected over loopback. Pure but for `pod_sockets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ztprobe.kernelnet.sockets import SocketTables, TcpSocket
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes

__all__ = ("OwnedSocket", "merged", "pod_sockets", "topology", "unknown")


@dataclass(frozen=True)
class OwnedSocket:
    """A socket and whose it is."""

    pod: str
    container: str
    socket: TcpSocket


def pod_sockets(pods: Iterable[Pod], processes: Processes, tables: SocketTables) -> list[OwnedSocket]:
    """The TCP sockets of these processes, which run in these pods.

    :param tables: what is asked again and again keeps its own.
    """
    found = []
    for pod in pods:
        pids = [pid for pid, (name, _) in processes.items() if name == pod.name]
        # What is nobody's is no container's: a proof's own.
        for socket, pid in tables.owned(pod.netns_inode, pids):
            found.append(OwnedSocket(pod.name, processes[pid][1], socket))
    return found


def topology(pods: Sequence[Pod], sockets: Sequence[OwnedSocket]) -> dict[str, Any]:
    """For run.json.

    ``pods`` that were looked at; ``endpoints``: where containers listen, and whether other pods can
    reach that; ``connections``: who has connected to them from another pod; ``serves``: pod -> the pods
    that have connected to it; ``behind_sidecar``: pods in which one container has connected to another
    over loopback, with the container that speaks to other pods if one does.
    """
    by_address = {pod.address: pod.name for pod in pods}
    endpoints = {
        (each.pod, each.container, each.socket.local, each.socket.local_port)
        for each in sockets
        if each.socket.listens
    }
    reachable = {(pod, port) for pod, _, address, port in endpoints if not _is_loopback(address)}
    connections = set()
    for each in sockets:
        target = by_address.get(each.socket.remote, "")
        if (target, each.socket.remote_port) in reachable:
            connections.add((each.pod, each.container, target, each.socket.remote_port))
    serves: dict[str, list[str]] = {}
    for pod, _, target, _ in sorted(connections):
        if pod not in serves.setdefault(target, []):
            serves[target].append(pod)
    names = ("pod", "container", "address", "port")
    return {
        "pods": [pod.name for pod in pods],
        "endpoints": [
            dict(zip(names, one, strict=True)) | {"reachable": not _is_loopback(one[2])}
            for one in sorted(endpoints)
        ],
        "connections": [
            dict(zip(("pod", "container", "to", "port"), one, strict=True)) for one in sorted(connections)
        ],
        "serves": serves,
        "behind_sidecar": _behind_sidecar(sockets),
    }


def unknown(server: str, pods: Iterable[Pod]) -> dict[str, Any]:
    """What is known before anybody has looked: who the rounds are of, and which pods there are."""
    return {
        "rounds_of": server,
        "pods": [pod.name for pod in pods],
        "endpoints": [],
        "connections": [],
        "serves": {},
        "behind_sidecar": {},
    }


def _behind_sidecar(sockets: Iterable[OwnedSocket]) -> dict[str, str]:
    by_end = {
        (each.pod, each.socket.local, each.socket.local_port, each.socket.remote_port): each.container
        for each in sockets
    }
    outside = {
        each.pod: each.container
        for each in sockets
        if not each.socket.listens and not _is_loopback(each.socket.remote)
    }
    found = set()
    for each in sockets:
        other = (each.pod, each.socket.remote, each.socket.remote_port, each.socket.local_port)
        if by_end.get(other, each.container) != each.container:
            found.add(each.pod)
    return {pod: outside.get(pod, "") for pod in sorted(found)}


def merged(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """What was seen at two times, together."""
    serves = {
        pod: sorted({*earlier["serves"].get(pod, ()), *later["serves"].get(pod, ())})
        for pod in sorted({*earlier["serves"], *later["serves"]})
    }
    lists = {
        name: earlier[name] + [one for one in later[name] if one not in earlier[name]]
        for name in ("pods", "endpoints", "connections")
    }
    sidecars = earlier["behind_sidecar"] | {
        pod: container or earlier["behind_sidecar"].get(pod, "")
        for pod, container in later["behind_sidecar"].items()
    }
    return {**lists, "serves": serves, "behind_sidecar": sidecars}


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
