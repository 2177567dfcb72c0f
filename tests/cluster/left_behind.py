"""What a trace may leave on a node and its cluster, looked at from outside: devices, files, objects."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.real_node import OURS, RealNode
from tests.kernel import tcx
from ztprobe.preflight.bpf import TCX_EGRESS, TCX_INGRESS

# Not those that the cluster's own controllers make as time goes by: events, endpoints, leases.
_KINDS = {
    "/api/v1": ("namespaces", "pods", "services", "configmaps", "secrets", "serviceaccounts"),
    "/apis/apps/v1": ("deployments", "daemonsets"),
    "/apis/batch/v1": ("jobs",),
    "/apis/networking.k8s.io/v1": ("networkpolicies",),
    "/apis/rbac.authorization.k8s.io/v1": (
        "roles",
        "rolebindings",
        "clusterroles",
        "clusterrolebindings",
    ),
}


def objects(node: RealNode) -> set[str]:
    """All that the cluster has of the kinds that somebody makes."""
    return {
        f"{kind} {one['metadata'].get('namespace', '')}/{one['metadata']['name']}"
        for group, kinds in _KINDS.items()
        for kind in kinds
        for one in node.call("GET", f"{group}/{kind}")["items"]
    }


def on_devices(node: RealNode) -> set[str]:
    """Qdiscs of ours, filters and programs on any device of the node or of a pod on it."""
    return {each for name, netns in _namespaces(node) for each in _on_devices(name, netns)}


def namespaces(node: RealNode) -> set[str]:
    """Names of the network namespaces that are bound on the node."""
    return {name for name, _ in _namespaces(node)}


def pinned(node: RealNode) -> set[str]:
    """Whatever is below /sys/fs/bpf."""
    top = f"/proc/{node.node.pid}/root/sys/fs/bpf"
    return {
        os.path.join(directory, name) for directory, below, files in os.walk(top) for name in below + files
    }


def processes(node: RealNode) -> set[str]:
    """Commands of ztprobe's that run in the node's mounts."""
    mounts, found = os.readlink(f"/proc/{node.node.pid}/ns/mnt"), set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.readlink(process / "ns/mnt") == mounts:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(word.split(".")[0] == "ztprobe" for word in words):
                    found.add(f"{process.name}: {' '.join(words)}")
        except OSError:
            continue  # it has ended
    return found


def _namespaces(node: RealNode) -> Iterator[tuple[str, Path]]:
    yield "node", Path(f"/proc/{node.node.pid}/ns/net")
    directory = Path(f"/proc/{node.node.pid}/root/run/netns")
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            yield path.name, path


def _on_devices(name: str, netns: Path) -> Iterator[str]:
    inside = ["nsenter", f"--net={netns}"]
    for line in _said([*inside, "tc", "qdisc", "show"]):
        if " clsact " in line or any(f" {handle} " in line for handle in OURS):
            yield f"{name}: {line}"
    for device in (line.split(":")[1].strip().split("@")[0] for line in _links(inside)):
        for side, kind in (("ingress", TCX_INGRESS), ("egress", TCX_EGRESS)):
            filters = _said([*inside, "tc", "filter", "show", "dev", device, side])
            yield from (f"{name}: {device} {side}: {line}" for line in filters)
            with contextlib.suppress(OSError):  # a pod that has just ended
                links = tcx.attached(netns, device, kind)
                yield from (f"{name}: {device} {side}: link {one}" for one in links)


def _links(inside: list[str]) -> list[str]:
    return _said([*inside, "ip", "-oneline", "link", "show"])


def _said(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
