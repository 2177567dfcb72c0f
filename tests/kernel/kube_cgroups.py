"""Where kubelet and a container runtime put a container's cgroups, in the layouts that this machine has."""

from __future__ import annotations

from pathlib import Path

from ztprobe.runtime.local import cgroups

__all__ = ("places_of",)


def places_of(tag: str, uid: str, layout: str, container: str) -> tuple[list[Path], Path]:
    """The directories of our own at the top, as in a nested kubelet, and the container's below each.

    :param tag: the name of the directories of our own.
    :param uid: the pod's.
    :param layout: v2-systemd | v1-cgroupfs
    :param container: its ID.
    """
    mounted = cgroups.detect()
    if layout == "v2-systemd":
        assert mounted.unified is not None
        return [mounted.unified / tag], Path(
            "kubepods.slice/kubepods-besteffort.slice",
            f"kubepods-besteffort-pod{uid.replace('-', '_')}.slice/cri-containerd-{container}.scope",
        )
    v1 = [root for root in (mounted.memory_v1, mounted.cpu_v1) if root is not None]
    assert v1, "cgroup v1 is not mounted: ask for v2-systemd"
    return [root / tag for root in v1], Path("kubepods/besteffort", f"pod{uid}", container)
