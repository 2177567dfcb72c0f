"""Acts on processes and their limits."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

from ztprobe.errors import WorkloadError
from ztprobe.validate.faults.acts.act import Do, Undo
from ztprobe.validate.faults.cgroup_paths import cgroups_of
from ztprobe.validate.inject.scene import Scene

__all__ = (
    "evict",
    "kill",
    "limit_address_space",
    "limit_cpu",
    "limit_files",
    "limit_memory",
    "stop",
)

_CPU_PERIOD_US = 100_000


def kill(pod: str, container: str, how: signal.Signals = signal.SIGKILL) -> Do:
    """End a container's process."""

    def do(scene: Scene) -> None:
        os.kill(scene.pid(pod, container), how)

    return do


def evict(pod: str) -> Do:
    """Tell all of a pod's containers to end, as kubelet does when a pod is evicted, drained or deleted."""

    def do(scene: Scene) -> None:
        where = scene.pod(pod)
        for pid in scene.runtime.source.processes([where]):
            with contextlib.suppress(ProcessLookupError):  # ended with its parent
                os.kill(pid, signal.SIGTERM)

    return do


def stop(pod: str, container: str) -> Do:
    """Stop a container's process, which keeps its connections."""

    def do(scene: Scene) -> Undo:
        pid = scene.pid(pod, container)
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)

    return do


def limit_files(pod: str, container: str, more: int) -> Do:
    """Let a process open so many files beyond those that it has open."""

    def do(scene: Scene) -> None:
        pid = scene.pid(pod, container)
        highest = max(int(entry) for entry in os.listdir(f"/proc/{pid}/fd"))
        limit = highest + 1 + more
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))

    return do


def limit_address_space(pod: str, container: str) -> Do:
    """Let a process map no more memory than it has mapped: what it asks for next is refused."""

    def do(scene: Scene) -> None:
        pid = scene.pid(pod, container)
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))

    return do


def limit_cpu(pod: str, container: str, cores: float) -> Do:
    """A CPU limit for a container, as a change of its resources in place sets it."""

    def do(scene: Scene) -> None:
        quota_us = round(cores * _CPU_PERIOD_US)
        for cgroup in cgroups_of(scene.pid(pod, container)):
            for file, value in (
                ("cpu.max", f"{quota_us} {_CPU_PERIOD_US}"),
                ("cpu.cfs_quota_us", f"{quota_us}"),
            ):
                if (cgroup / file).exists():
                    (cgroup / file).write_text(value)
                    return
        raise WorkloadError("no cgroup of it takes a CPU limit")

    return do


def limit_memory(pod: str, container: str, share: float) -> Do:
    """A memory limit for a container, as a change of its resources in place sets it.

    :param share: of what it uses at that moment.
    """

    def do(scene: Scene) -> None:
        for cgroup in cgroups_of(scene.pid(pod, container)):
            for used, limit in (
                ("memory.current", "memory.max"),
                ("memory.usage_in_bytes", "memory.limit_in_bytes"),
            ):
                if (cgroup / used).exists():
                    (cgroup / limit).write_text(str(round(int((cgroup / used).read_text()) * share)))
                    return
        raise WorkloadError("no cgroup of it takes a memory limit")

    return do
