"""What stands on the machine between two runs of a study, written into the later one's directory.

Pods, their qdiscs, policies and TCP's memory of paths go with their namespaces, which every run makes
anew; what an interrupted run left is cleaned before the next begins. What the machine shares between
runs, and could carry over, is looked at here, so that a reader can see that it did not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ztprobe import paths

__all__ = ("machine_state",)

_NAMESPACES = Path("/run/netns")
_CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def machine_state() -> dict[str, Any]:
    """Live runs and namespaces of ztprobe (none, unless somebody else runs one), settings, load."""
    return {
        "runs": sorted(p.parent.name for p in paths.STATE_DIR.glob("*/journal.json")),
        "namespaces": sorted(p.name for p in _NAMESPACES.glob("ztp-*")),
        "allowed_congestion_controls": _CONGESTION_CONTROLS.read_text().split(),
        "load_1min": float(Path("/proc/loadavg").read_text().split()[0]),
    }
