"""Pods that run on this node now, and how to reach their network namespaces.

Pods of the local runtime are read from the journals of live runs
(``/run/ztprobe/RUN/journal.json``). For a pod of a cluster (`ztprobe.kubernetes.pod_source`), the way is from
process to cgroup to pod UID: kubelet names a pod's cgroup after its UID in every layout (cgroup
v1 and v2, cgroupfs and systemd drivers), so no container runtime has to be asked. `pod_uid` is
that rule, pure; `find_namespaces` walks ``/proc`` with it.

A process may end before its pod does. Container runtimes bind a pod's namespace under
``/run/netns`` for the pod's whole life, so that is the path that is kept where there is one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import UsageError
from ztprobe.pods.cgroup_path import pod_of_path
from ztprobe.pods.selectors import Selector

__all__ = (
    "NOWHERE",
    "Namespaces",
    "RunningPod",
    "choose",
    "find_namespaces",
    "lasting",
    "local_pods",
    "no_match",
    "pod_uid",
    "still_there",
)

_PINNED = (Path("/run/netns"), Path("/proc/1/root/run/netns"))  # from a pod with hostPID, the latter

_FEW = 12
NOWHERE = Path("/nonexistent")  # the namespace of what does not run here


@dataclass(frozen=True, kw_only=True)
class RunningPod:
    """A pod of this node, as the profile command needs it; `ztprobe.pods.target.Target` is one."""

    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str  # IPv4
    netns: Path
    netns_inode: int  # tells a namespace from a later one of the same path; 0: it is on another node
    interface: str  # inside the pod: eth0
    host_interface: str  # the other end of its veth, in node_netns; empty: it has none
    node_netns: Path  # where packets between pods are forwarded
    run: str = ""  # of the local runtime; empty: of a cluster
    uid: str = ""  # in a cluster
    node: str = ""  # in a cluster

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def is_here(self) -> bool:
        """Whether it runs on this node; otherwise it is only an address."""
        return self.netns_inode != 0

    @property
    def runtime(self) -> str:
        """local | kubernetes"""
        return "local" if self.run else "kubernetes"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"netns": str(self.netns), "node_netns": str(self.node_netns)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunningPod:
        """:raises (KeyError, TypeError): not what `as_dict` gives."""
        values = dict(data)
        return cls(**values | {"netns": Path(values["netns"]), "node_netns": Path(values["node_netns"])})


def still_there(netns: Path, netns_inode: int) -> bool:
    """Whether the path is still the namespace that it was."""
    try:
        return os.stat(netns).st_ino == netns_inode
    except OSError:
        return False


def local_pods(state_dir: Path | None = None) -> list[RunningPod]:
    """The pods of all live runs of the local runtime, ordered by run and name."""
    found = []
    for journal in sorted((state_dir or paths.STATE_DIR).glob("*/journal.json")):
        try:
            listed = json.loads(journal.read_text()).get("pods", ())
            pods = [RunningPod.from_dict({**pod, "run": journal.parent.name}) for pod in listed]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # being made or being removed
        found += [pod for pod in pods if still_there(pod.netns, pod.netns_inode)]
    return sorted(found, key=lambda pod: (pod.run, pod.namespace, pod.name))


def choose(
    pods: Iterable[RunningPod], selector: Selector, namespace: str, *, option: str = "--selector"
) -> list[RunningPod]:
    """The pods of a namespace that a selector matches.

    :param option: for the message.
    :raises UsageError: none; says what there is.
    """
    everything = list(pods)
    chosen = [p for p in everything if p.namespace == namespace and selector.matches(p.labels)]
    if chosen:
        return chosen
    if not everything:
        raise UsageError(
            "no pods are running on this machine: start a run in another terminal (ztprobe trace ...),"
            " or name a cluster (KUBECONFIG)"
        )
    raise no_match(selector, namespace, [(p.namespace, p.name, p.labels) for p in everything], option=option)


def no_match(
    selector: Selector,
    namespace: str,
    there: Iterable[tuple[str, str, Mapping[str, str]]],
    *,
    option: str,
) -> UsageError:
    """What to say when a selector picks nothing: what there is.

    :param there: namespace, name, labels.
    """
    running = sorted({f"{space}: {_words(labels) or name}" for space, name, labels in there})
    some = "; ".join(running[:_FEW]) + ("; ..." if len(running) > _FEW else "")
    what = f"running: {some}" if running else "nothing runs there"
    return UsageError(f"{option} {selector.text!r} matches no pod in namespace {namespace}; {what}")


def _words(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def pod_uid(cgroup_file: str) -> str | None:
    """The UID of the pod that a process belongs to, from the text of its ``/proc/PID/cgroup``.

    Lines are ``ID:CONTROLLERS:PATH``: one (``0::PATH``) on v2, one per hierarchy on v1, both on
    hybrid layouts. None: no pod's process.
    """
    found = {pod_of_path(line.split(":", 2)[-1]) for line in cgroup_file.splitlines()} - {None}
    return found.pop() if len(found) == 1 else None  # hierarchies that name two pods: somebody made that up


@dataclass(frozen=True, kw_only=True)
class Namespaces:
    """The network namespaces of this machine's processes."""

    pods: Mapping[str, Path]  # by the pod's UID
    others: tuple[Path, ...]  # of processes of no pod; the machine's own first


def find_namespaces(proc: Path = Path("/proc")) -> Namespaces:
    """Find every pod's network namespace, and those that may hold the other ends of pods' links.

    Pods in the host's own network are left out: there is nothing of theirs to change.
    """
    hosts = {_namespace(proc / name / "ns" / "net") for name in ("1", "self")}
    of_pods: dict[str, tuple[str, Path]] = {}
    others: dict[str, Path] = {}
    for process in sorted((p for p in proc.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        path = process / "ns" / "net"
        namespace = _namespace(path)
        try:
            uid = pod_uid((process / "cgroup").read_text())
        except OSError:
            continue  # it has ended meanwhile
        if namespace is None:
            continue
        if uid is None:
            others.setdefault(namespace, path)
        elif namespace not in hosts:
            of_pods.setdefault(uid, (namespace, path))
    taken = {namespace for namespace, _ in of_pods.values()}
    return Namespaces(
        pods={uid: path for uid, (_, path) in of_pods.items()},
        others=tuple(path for namespace, path in others.items() if namespace not in taken),
    )


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
