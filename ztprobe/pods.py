"""Pods that run on this node now, and how to reach their network namespaces.

Pods of the local runtime are read from the journals of live runs
(``/run/ztprobe/RUN/journal.json``). For a pod of a cluster, the way is from process to
cgroup to pod UID: kubelet names a pod's cgroup after its UID in every layout (cgroup v1 and
v2, cgroupfs and systemd drivers), so no container runtime has to be asked. `pod_uid` is
that rule, pure; `find_pod_namespaces` walks ``/proc`` with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import UsageError
from ztprobe.selectors import Selector

__all__ = ("RunningPod", "choose", "find_pod_namespaces", "local_pods", "pod_uid", "still_there")

# kubepods/burstable/pod<uid>/<container>            cgroupfs driver
# kubepods.slice/kubepods-pod<uid with _>.slice/...  systemd driver
# with anything above (kubelet in a container, kind, v1's per-controller paths)
_HEX = "[0-9a-f]"
_UID = (
    rf"{_HEX}{{8}}[-_]{_HEX}{{4}}[-_]{_HEX}{{4}}[-_]{_HEX}{{4}}[-_]{_HEX}{{12}}"
    rf"|{_HEX}{{32}}"  # a static pod's, from a hash of its manifest
)
_POD_CGROUP = re.compile(rf"kubepods[^/]*(?:/[^/]+)*?/(?:[a-z]+-)*pod(?P<uid>{_UID})(?:\.slice)?(?:/|$)")


@dataclass(frozen=True, kw_only=True)
class RunningPod:
    """A pod of this node, as the profile command needs it; `ztprobe.emulation.target.Target` is one."""

    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str  # IPv4
    netns: Path
    netns_inode: int  # tells a namespace from a later one of the same path
    interface: str  # inside the pod: eth0
    host_interface: str  # the other end of its veth, in node_netns
    node_netns: Path  # where packets between pods are forwarded
    run: str  # of the local runtime

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

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
            "no pods are running on this machine: start a run in another terminal (ztprobe trace ...)"
        )
    there = sorted({f"{p.namespace}: {_words(p.labels) or p.name}" for p in everything})
    raise UsageError(
        f"{option} {selector.text!r} matches no pod in namespace {namespace}; running: {'; '.join(there)}"
    )


def _words(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def pod_uid(cgroup_file: str) -> str | None:
    """The UID of the pod that a process belongs to, from the text of its ``/proc/PID/cgroup``.

    Lines are ``ID:CONTROLLERS:PATH``: one (``0::PATH``) on v2, one per hierarchy on v1, both on
    hybrid layouts. None: no pod's process.
    """
    for line in cgroup_file.splitlines():
        path = line.split(":", 2)[-1]
        if (match := _POD_CGROUP.search(path)) is not None:
            return match["uid"].replace("_", "-")
    return None


def find_pod_namespaces(proc: Path = Path("/proc")) -> dict[str, Path]:
    """Pod UID -> the network namespace of one of its processes (``/proc/PID/ns/net``).

    Pods in the host's own network are left out: there is nothing of theirs to change.
    """
    try:
        host = os.readlink(proc / "1" / "ns" / "net")
    except OSError:
        host = ""
    found: dict[str, Path] = {}
    for process in sorted((p for p in proc.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        try:
            uid = pod_uid((process / "cgroup").read_text())
            if uid is None or uid in found or os.readlink(process / "ns" / "net") == host:
                continue
        except OSError:
            continue  # it has ended meanwhile
        found[uid] = process / "ns" / "net"
    return found
