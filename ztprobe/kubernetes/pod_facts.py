"""What kubelet makes of a pod that the API names: its cgroup's name, its logs, and when it is over."""

from __future__ import annotations

from pathlib import Path

from ztprobe.kubernetes.answers import Object

__all__ = ("LOGS", "NODE_NAME", "cgroup_uid", "is_over", "newest_log")

NODE_NAME = "NODE_NAME"  # as the downward API gives it to an agent's pod
LOGS = Path("/var/log/pods")  # where kubelet links the containers' logs, one file for each start
_STATIC_UID = "kubernetes.io/config.hash"  # a static pod's cgroup is named after this, not its UID
_ENDED = ("Succeeded", "Failed")


def cgroup_uid(pod: Object) -> str:
    """The UID that its cgroup is named after."""
    metadata = pod["metadata"]
    return str((metadata.get("annotations") or {}).get(_STATIC_UID) or metadata["uid"])


def is_over(pod: Object) -> bool:
    """Whether all of its containers have ended for good."""
    return pod["status"].get("phase") in _ENDED


def newest_log(container: Path) -> Path:
    """The log of a container's latest start, by the directory of its logs; it may not be there."""
    starts = [int(path.stem) for path in container.glob("*.log") if path.stem.isdigit()]
    return container / f"{max(starts, default=0)}.log"
