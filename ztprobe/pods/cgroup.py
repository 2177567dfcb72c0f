"""From a process to its pod, and from a pod to its network namespace, on a cluster's node.

The way is from process to cgroup to pod UID: kubelet names a pod's cgroup after its UID in every
layout (cgroup v1 and v2, cgroupfs and systemd drivers), so no container runtime has to be asked.
`pod_uid` and `container_id` are that rule, pure; `find_namespaces` and `find_processes` walk
``/proc`` with it.

A process may end before its pod does. Container runtimes bind a pod's namespace under
``/run/netns`` for the pod's whole life, so that is the path that is kept where there is one.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ztprobe.pods.cgroup_path import pod_of_path

__all__ = (
    "PodNamespaces",
    "PodProcesses",
    "container_id",
    "find_namespaces",
    "find_processes",
    "lasting",
    "pod_uid",
)

_HEX = "[0-9a-f]"
_PINNED = (Path("/run/netns"), Path("/proc/1/root/run/netns"))  # from a pod with hostPID, the latter

_SETTLED_S = 10.0
# The last part of a container's cgroup: ID, or RUNTIME-ID.scope with the systemd driver.
_CONTAINER = re.compile(rf"/(?:[a-z-]+-)?(?P<id>{_HEX}{{64}})(?:\.scope)?(?:/|$)")


def pod_uid(cgroup_file: str) -> str | None:
    """The UID of the pod that a process belongs to, from the text of its ``/proc/PID/cgroup``.

    Lines are ``ID:CONTROLLERS:PATH``: one (``0::PATH``) on v2, one per hierarchy on v1, both on
    hybrid layouts. None: no pod's process.
    """
    found = {pod_of_path(line.split(":", 2)[-1]) for line in cgroup_file.splitlines()} - {None}
    return found.pop() if len(found) == 1 else None  # hierarchies that name two pods: somebody made that up


def container_id(cgroup_file: str) -> str | None:
    """The container that a process belongs to, as the API's ``containerID`` ends; None: no container's."""
    for line in cgroup_file.splitlines():
        match = _CONTAINER.search(line.split(":", 2)[-1])
        if match is not None:
            return match["id"]
    return None


@dataclass(frozen=True, kw_only=True)
class PodNamespaces:
    """The network namespaces of this machine's processes."""

    pods: Mapping[str, Path]  # by the pod's UID
    others: tuple[Path, ...]  # of processes of no pod; the machine's own first


def find_namespaces(proc: Path = Path("/proc")) -> PodNamespaces:
    """Find every pod's network namespace, and those that may hold the other ends of pods' links.

    Pods in the host's own network are left out: there is nothing of theirs to change.
    """
    hosts = {_namespace(proc / name / "ns" / "net") for name in ("1", "self")}
    of_pods: dict[str, tuple[str, Path]] = {}
    others: dict[str, Path] = {}
    for process, cgroups in _processes(proc):
        path = process / "ns" / "net"
        namespace, uid = _namespace(path), pod_uid(cgroups)
        if namespace is None:
            continue
        if uid is None:
            others.setdefault(namespace, path)
        elif namespace not in hosts:
            of_pods.setdefault(uid, (namespace, path))
    taken = {namespace for namespace, _ in of_pods.values()}
    return PodNamespaces(
        pods={uid: path for uid, (_, path) in of_pods.items()},
        others=tuple(path for namespace, path in others.items() if namespace not in taken),
    )


def find_processes(uids: Mapping[str, str], proc: Path = Path("/proc")) -> Iterator[tuple[int, str, str]]:
    """(pid, what ``uids`` says of its pod, container's ID) of every process in a container of these pods."""
    for process, cgroups in _processes(proc):
        uid, container = pod_uid(cgroups), container_id(cgroups)
        if uid is not None and container is not None and uid in uids:
            yield int(process.name), uids[uid], container


class PodProcesses:
    """As `find_processes`, for who asks many times a second: a process is looked at while it is young.

    A container's process begins in the cgroup of whoever starts it, and is moved before its program runs.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._looking = threading.Lock()  # whoever measures the machine asks, too
        self._seen: dict[int, tuple[float, str | None, str | None]] = {}  # since when, pod's UID, container

    def look(self, uids: Mapping[str, str]) -> list[tuple[int, str, str]]:
        """See `find_processes`."""
        with self._looking:
            self._look()
            return [
                (pid, uids[uid], container)
                for pid, (_, uid, container) in self._seen.items()
                if uid is not None and container is not None and uid in uids
            ]

    def _look(self) -> None:
        now_s = time.monotonic()
        pids = {int(name) for name in os.listdir(self._proc) if name.isdigit()}
        for pid in self._seen.keys() - pids:
            del self._seen[pid]
        for pid in sorted(pids):
            since_s, uid, container = self._seen.get(pid, (now_s, None, None))
            if now_s - since_s < _SETTLED_S:
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    cgroups = (self._proc / str(pid) / "cgroup").read_text()
                    uid, container = pod_uid(cgroups), container_id(cgroups)
                self._seen[pid] = (since_s, uid, container)


def _processes(proc: Path) -> Iterator[tuple[Path, str]]:
    for process in sorted((p for p in proc.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        try:
            cgroups = (process / "cgroup").read_text()
        except OSError:
            continue  # it has ended meanwhile
        yield process, cgroups


def _namespace(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def lasting(netns: Path) -> Path:
    """Where a namespace is bound for as long as it is in use; else the path given."""
    try:
        wanted = os.stat(netns)
    except OSError:
        return netns
    for directory in _PINNED:
        with contextlib.suppress(OSError):
            for path in sorted(directory.iterdir()):
                found = path.stat()
                if (found.st_ino, found.st_dev) == (wanted.st_ino, wanted.st_dev):
                    return path
    return netns
