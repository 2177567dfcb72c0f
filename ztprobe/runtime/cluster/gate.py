"""The gate of a pod that is to be traced: an init container that holds the application back.

Probes, profile and measurements come before an application's first packet: a pod's network is there as
soon as its first init container runs, and the application begins when that has ended. The gate waits for
a file in a volume of the pod's own, which the tracer makes through the root of the gate's process.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ztprobe.process.identity import started_ticks

__all__ = ("GATE", "gated", "open_gate")

GATE = "ztprobe-gate"
_DIRECTORY = ("run", GATE)
_FILE = "open"
_LONGEST_S = 1800  # a gate that nobody opens ends its pod
_WAIT = f"until [ -e /{'/'.join(_DIRECTORY)}/{_FILE} ]; do sleep 0.5; done"  # each look is a new process


def gated(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A pod's spec with a gate before everything else, of the application's image and rights."""
    application = spec["containers"][0]
    gate = {
        "name": GATE,
        "image": application["image"],
        "command": ["timeout", str(_LONGEST_S), "sh", "-c", _WAIT],
        "volumeMounts": [{"name": GATE, "mountPath": f"/{'/'.join(_DIRECTORY)}"}],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
    }
    gate |= {key: application[key] for key in ("imagePullPolicy", "securityContext") if key in application}
    return {
        **spec,
        "initContainers": [gate, *spec.get("initContainers", ())],
        "volumes": [*spec.get("volumes", ()), {"name": GATE, "emptyDir": {}}],
    }


def open_gate(pids: Iterable[int]) -> float | None:
    """Let the pod of a gate's processes go on, whichever of them still runs.

    :returns: how long it was held, in seconds; None: none of them is there.
    """
    held_s = None
    for pid in sorted(pids):
        with contextlib.suppress(OSError):  # it has ended
            held_s = max(held_s or 0.0, _held_s(pid))
            _open_at(pid)
            return held_s
    return None


def _open_at(pid: int, proc: Path = Path("/proc")) -> None:
    # Every step is taken without following links: what the image holds there is not ours.
    with contextlib.ExitStack() as stack:
        here = os.open(proc / str(pid) / "root", os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, here)
        for name in _DIRECTORY:
            here = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            stack.callback(os.close, here)
        os.close(os.open(_FILE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644, dir_fd=here))


def _held_s(pid: int) -> float:
    since_s = started_ticks(pid) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_s)
