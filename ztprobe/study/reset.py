"""What stands on the machine between two runs of a study, and of which commit; kept with the later run.

Pods, their qdiscs, policies and TCP's memory of paths go with their namespaces, which every run makes
anew; what an interrupted run left is cleaned before the next begins. What the machine shares between
runs, and could carry over, is looked at here, so that a reader can see that it did not.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

from ztprobe import paths

__all__ = ("commit", "machine_state")

_NAMESPACES = Path("/run/netns")
_GIT_S = 10
_CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def machine_state() -> dict[str, Any]:
    """Live runs and namespaces of ztprobe (none, unless somebody else runs one), settings, load.

    :returns: also the `commit`.
    """
    return {
        "commit": commit(),
        "runs": sorted(p.parent.name for p in paths.STATE_DIR.glob("*/journal.json")),
        "namespaces": sorted(p.name for p in _NAMESPACES.glob("ztp-*")),
        "allowed_congestion_controls": _CONGESTION_CONTROLS.read_text().split(),
        "load_1min": float(Path("/proc/loadavg").read_text().split()[0]),
    }


def commit() -> str | None:
    """Which one this is, with ``-dirty`` where files differ from it; None: it is no clone."""
    if not (paths.REPO_DIR / ".git").exists():
        return None  # installed: a directory above may be a clone of something else
    # A clone may belong to another user than root, whose code this is anyway.
    git = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C", str(paths.REPO_DIR))
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_S,
        ).stdout.strip()
    return None
