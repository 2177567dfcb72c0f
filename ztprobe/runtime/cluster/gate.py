"""A traced pod's gates, which hold back what comes after them, and its hold, which keeps the pod at the end.

Probes, profile and measurements come before an application's first packet: a pod's network is there as
soon as its first init container runs, and the application begins when that has ended. A pod with sidecars
has a second gate behind them, so that they are up before the application is, as on the local runtime. A
gate waits for a file in a volume of the pod's own, which the tracer makes through the root of the gate's
process.

kubelet takes a pod's network away, and what has counted there, within a second of its last container's end.
So another container beside the application lasts until the pod is removed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ztprobe.process.identity import started_ticks

__all__ = ("GATE", "GATES", "HOLD", "INNER_GATE", "gated", "is_hold", "is_sidecar", "open_gate")

GATE = "ztprobe-gate"
INNER_GATE = "ztprobe-gate-inner"  # behind sidecars
HOLD = "ztprobe-hold"
_FILES = {GATE: "open", INNER_GATE: "open-inner"}
GATES = tuple(_FILES)
_DIRECTORY = ("run", GATE)
_LONGEST_S = 1800  # a gate that nobody opens ends its pod
_LONGEST_RUN_S = 7 * 86_400  # of whom nobody has removed, the pod ends by itself
_MARK = "ZTPROBE_HOLD"


def is_sidecar(container: Mapping[str, Any]) -> bool:
    """Whether an init container goes on beside the application (Kubernetes 1.29 or later)."""
    return container.get("restartPolicy") == "Always"


def gated(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A pod's spec with a gate before everything else, one behind its sidecars, if it has any, and a hold."""
    before = spec.get("initContainers", ())
    inner = [_gate(INNER_GATE, spec)] if any(is_sidecar(one) for one in before) else []
    hold = {
        **_of_application(spec),
        "name": HOLD,
        "command": ["timeout", str(_LONGEST_RUN_S), "sleep", "infinity"],
        "env": [{"name": _MARK, "value": "1"}],
    }
    return {
        **spec,
        "initContainers": [_gate(GATE, spec), *before, *inner],
        "containers": [*spec["containers"], hold],
        "volumes": [*spec.get("volumes", ()), {"name": GATE, "emptyDir": {}}],
    }


def _gate(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    directory = f"/{'/'.join(_DIRECTORY)}"
    wait = f"until [ -e {directory}/{_FILES[name]} ]; do sleep 0.5; done"  # each look is a new process
    return {
        **_of_application(spec),
        "name": name,
        "command": ["timeout", str(_LONGEST_S), "sh", "-c", wait],
        "volumeMounts": [{"name": GATE, "mountPath": directory}],
    }


def _of_application(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A small container of the application's image and rights."""
    application = spec["containers"][0]
    return {
        "image": application["image"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        **{key: application[key] for key in ("imagePullPolicy", "securityContext") if key in application},
    }


def is_hold(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process is a hold's, which the API tells a second or two after it has begun."""
    try:
        return f"{_MARK}=1".encode() in (proc / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False


def open_gate(pids: Iterable[int], name: str = GATE) -> float | None:
    """Let the pod of a gate's processes go on, whichever of them still runs.

    :param name: of the gate.
    :returns: how long it was held, in seconds; None: none of them is there.
    """
    held_s = None
    for pid in sorted(pids):
        with contextlib.suppress(OSError):  # it has ended
            held_s = max(held_s or 0.0, _held_s(pid))
            _open_at(pid, _FILES[name])
            return held_s
    return None


def _open_at(pid: int, file: str, proc: Path = Path("/proc")) -> None:
    # Every step is taken without following links: what the image holds there is not ours.
    with contextlib.ExitStack() as stack:
        here = os.open(proc / str(pid) / "root", os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, here)
        for name in _DIRECTORY:
            here = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            stack.callback(os.close, here)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644, dir_fd=here))


def _held_s(pid: int) -> float:
    since_s = started_ticks(pid) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_s)
