"""One look at a deployment: what its connections and processes have done so far, and how they stand.

What follows from two looks is `ztprobe.agent.stalls`' business.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ztprobe.kernelnet.netns import entered
from ztprobe.kernelnet.tcp_ends import TcpEnd, tcp_ends
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes

__all__ = ("ProcessLook", "StallLook", "look", "process_look", "tcp_limits")

_SYSCTLS = Path("/proc/sys/net/ipv4")
_TCP_LIMITS = ("tcp_syn_retries", "tcp_syn_linear_timeouts", "tcp_retries2")  # the second since Linux 6.5


@dataclass(frozen=True, kw_only=True)
class ProcessLook:
    """A process of a pod."""

    container: str
    cpu_s: float  # so far
    state: str  # R, S, D, T, t, Z: as proc(5) has them
    started_s: float  # CLOCK_MONOTONIC, as far as clock ticks tell


@dataclass(frozen=True, kw_only=True)
class StallLook:
    """Everything at one moment."""

    at_s: float  # CLOCK_MONOTONIC
    addresses: Mapping[str, str]  # address -> pod
    ends: Mapping[str, tuple[TcpEnd, ...]]  # pod -> its ends; a pod whose namespace is gone is not there
    processes: Mapping[str, Mapping[int, ProcessLook]]  # pod -> pid -> process
    limits: Mapping[str, Mapping[str, int]]  # pod -> how often TCP repeats before it gives up
    # Pod -> its network namespace, where several share one; each that is not there has its own.
    places: Mapping[str, int] = field(default_factory=dict)


def look(pods: Iterable[Pod], processes: Processes) -> StallLook:
    """Look now. Takes about a millisecond a pod."""
    pods = list(pods)
    ends: dict[str, tuple[TcpEnd, ...]] = {}
    limits: dict[str, dict[str, int]] = {}
    for pod in pods:
        with contextlib.suppress(OSError):  # it has ended
            ends[pod.name] = tuple(tcp_ends(pod.netns))
            limits[pod.name] = tcp_limits(pod.netns)
    running: dict[str, dict[int, ProcessLook]] = {pod.name: {} for pod in pods}
    for pid, (pod_name, container) in processes.items():
        with contextlib.suppress(OSError, ValueError):  # it has ended
            running.setdefault(pod_name, {})[pid] = process_look(pid, container)
    return StallLook(
        at_s=time.monotonic(),
        addresses={pod.address: pod.name for pod in pods},
        ends=ends,
        processes=running,
        limits=limits,
    )


def process_look(pid: int, container: str) -> ProcessLook:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    # In ticks since boot; CLOCK_BOOTTIME runs on where CLOCK_MONOTONIC stands while a machine sleeps.
    since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / ticks
    return ProcessLook(
        container=container,
        cpu_s=(int(fields[11]) + int(fields[12])) / ticks,
        state=fields[0],
        started_s=time.monotonic() - since_boot_s,
    )


def tcp_limits(netns: Path) -> dict[str, int]:
    with entered(netns):
        files = [_SYSCTLS / name for name in _TCP_LIMITS]
        return {file.name: int(file.read_text()) for file in files if file.exists()}
