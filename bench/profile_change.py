"""Changing a profile in device on 200 pods: ztprobe beside as many `tc qdisc change` processes, on one core.

    make bench BENCH_ARGS='--only profile'

Both sides do the same to the same qdiscs, which hold what they hold meanwhile: enter the pod's
namespace, give the token bucket (netem where the kernel has it) other values. ztprobe also reads
back what it set. The two alternate; figures are medians of the trials. The last row is the delay
line, which changes for all pods of a node at once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.profile_apply import many_pods, whole_lease
from ztprobe.emulation.apply import put_into_force, revert
from ztprobe.emulation.delay_line.node import NodeQueue, QueuedPod
from ztprobe.emulation.delay_line.process import MAX_PODS
from ztprobe.emulation.netem import netem_supported
from ztprobe.emulation.profile_change import change
from ztprobe.kernelnet.drift import PodDevice
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile
from ztprobe.profile.schedule import Schedule, Step
from ztprobe.rundir.temporary import scratch

__all__ = "measure_changes"

_TRIALS = 5
_HOLDS_S = 3600
_VALUES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tbf": ({"rate_mbit": 10.0}, {"rate_mbit": 20.0}),
    "netem": ({"delay_ms": 150.0}, {"delay_ms": 20.0, "jitter_ms": 5.0, "distribution": "normal"}),
    "nfqueue": ({"delay_ms": 150.0}, {"delay_ms": 20.0, "jitter_ms": 5.0, "distribution": "normal"}),
}
_TC = {
    "tbf": ("rate 10mbit burst 4542 limit 166540", "rate 20mbit burst 4542 limit 166540"),
    "netem": ("delay 150ms limit 123844", "delay 20ms 5ms distribution normal limit 123844"),
}


def measure_changes(count: int = 200) -> dict[str, Any]:
    """Change qdiscs of ``count`` pods back and forth, and a delay line; needs root.

    :returns: ``backend``, ``pods``, ``pod_ms`` and ``tc_pod_ms`` (median milliseconds a pod),
        ``times_as_fast``, ``delay_line_ms`` (all of its pods together) and ``delay_line_pods``.
    """
    backend = "netem" if netem_supported() else "tbf"
    before = os.sched_getaffinity(0)
    with scratch() as state, many_pods(count, state) as pods:
        os.sched_setaffinity(0, {min(before)})
        try:
            ours_s, tc_s = _qdiscs(pods, backend)
        finally:
            os.sched_setaffinity(0, before)
        line_s = _delay_line(pods[:MAX_PODS], state)
    ours, theirs = (1e3 * statistics.median(trials) / count for trials in (ours_s, tc_s))
    return {
        "backend": backend,
        "pods": count,
        "pod_ms": round(ours, 4),
        "tc_pod_ms": round(theirs, 4),
        "times_as_fast": round(theirs / ours, 2),
        "delay_line_ms": round(1e3 * statistics.median(line_s), 3),
        "delay_line_pods": min(count, MAX_PODS),
        "trials_s": {"ztprobe": ours_s, "tc": tc_s, "delay_line": line_s},
    }


def _scheduled(backend: str) -> Profile:
    steps = tuple(Step(at_ns=i * _HOLDS_S * 10**9, **values) for i, values in enumerate(_VALUES[backend]))
    return Profile(name="bench", schedule=Schedule(steps=steps))


def _qdiscs(pods: Sequence[Pod], backend: str) -> tuple[list[float], list[float]]:
    profile = _scheduled(backend)
    lease = whole_lease(profile, pods, backend, _HOLDS_S)
    put_into_force(lease)
    devices = [PodDevice(pod=point.pod, netns=point.netns, name=point.device) for point in lease.points]
    command = _tc_command(devices[0], backend)
    ours_s, tc_s = [], []
    try:
        for trial in range(_TRIALS):
            started = time.perf_counter()
            change(profile.steps[1 - trial % 2], backend, devices, [])
            ours_s.append(time.perf_counter() - started)
            words = [*command, *_TC[backend][trial % 2].split()]
            started = time.perf_counter()
            for device in devices:
                with entered(device.netns):
                    subprocess.run(words, check=True)
            tc_s.append(time.perf_counter() - started)
    finally:
        revert(lease)
    return ours_s, tc_s


def _tc_command(device: PodDevice, backend: str) -> list[str]:
    # The qdisc that does the work may stand below another one; all pods are alike.
    with entered(device.netns):
        shown = subprocess.run(
            ["tc", "-j", "qdisc", "show", "dev", device.name], capture_output=True, check=True
        )
    found = max(
        (q for q in json.loads(shown.stdout) if q["kind"] == backend), key=lambda q: int(q["handle"][:-1], 16)
    )
    where = ["root"] if found.get("root") else ["parent", found["parent"]]
    return ["tc", "qdisc", "change", "dev", device.name, *where, "handle", found["handle"], backend]


def _delay_line(pods: Sequence[Pod], state: Path) -> list[float]:
    profile = _scheduled("nfqueue")
    queued = [QueuedPod(name=str(pod), address=pod.address) for pod in pods]
    queue = NodeQueue(profile, queued, pods[0].node_netns, state, seed=1)
    trials_s = []
    try:
        queue.start()
        for trial in range(2 * _TRIALS):
            started = time.perf_counter()
            queue.change(profile.steps[1 - trial % 2])
            trials_s.append(time.perf_counter() - started)
    finally:
        queue.stop()
    return trials_s
