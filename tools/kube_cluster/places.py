"""Where the node's parts are, and what it is called."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = (
    "API",
    "CGROUP",
    "CRI",
    "NODE",
    "NODE_ADDRESS",
    "PAUSE_IMAGE",
    "POD_RANGE",
    "PROGRAMS",
    "SERVICE_RANGE",
    "TREE",
    "ClusterError",
    "bin_dir",
    "cache",
    "images",
    "missing_parts",
    "node_dir",
)

TREE = Path(__file__).parents[2]
NODE = "node-a"
CGROUP = "ztprobe-kube"  # in every hierarchy; there is one such cluster on a machine
NODE_ADDRESS = "10.99.0.1"
POD_RANGE, SERVICE_RANGE = "10.98.0.0/24", "10.96.0.0/24"
API = f"https://{NODE_ADDRESS}:6443"
CRI = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "docker.io/ztprobe/pause:1.20"
PROGRAMS = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"),
    *("containerd", "ctr", "containerd-shim-runc-v2", "runc", "cni", "pause"),
)
_IMAGES = ("agent", "fl")


class ClusterError(Exception):
    """Why there is no cluster, as one line."""


def cache() -> Path:
    """The directory that is kept: programs, and the one node."""
    given = os.environ.get("KUBE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{home}/ztprobe-kube").expanduser().resolve()


def bin_dir() -> Path:
    """Where `tools/kube-cluster build` puts programs."""
    return cache() / "bin"


def node_dir() -> Path:
    """Everything that the node writes."""
    return cache() / "node"


def images() -> list[Path]:
    """The archives of the project's images."""
    return [TREE / f"build/images/{name}.oci.tar" for name in _IMAGES]


def missing_parts() -> list[str]:
    """What is not there yet, and what makes it."""
    programs = [name for name in PROGRAMS if not os.access(bin_dir() / name, os.X_OK)]
    found = [f"{', '.join(programs)} (tools/kube-cluster build)"] if programs else []
    return found + [f"{path.relative_to(TREE)} (make images)" for path in images() if not path.is_file()]
