"""From nothing to all probes attached, and what an empty program costs here."""

from __future__ import annotations

import ctypes
import os
import time

from tests.kernel.pods import TestPod
from ztprobe.netns import inode
from ztprobe.preflight.bpf import RAW_TRACEPOINT, trivial_program
from ztprobe.probes.collector import Collector
from ztprobe.probes.kernel import KernelProbes, ProgramCost

__all__ = ("Watch", "empty_program_ns", "startup_s")


class Watch:
    """Probes on bare pods, with the reader; a context manager."""

    def __init__(self, pods: tuple[TestPod, ...], *, statistics: bool = False) -> None:
        self.kernel = KernelProbes()
        self.kernel.load()
        self.kernel.attach()
        if statistics:
            self.kernel.enable_stats()
        for pod in pods:
            self.kernel.trace_netns(inode(pod.netns))
            self.kernel.attach_interface(pod.netns, "eth0")
        self.collector = Collector(self.kernel, {inode(pod.netns): pod.name for pod in pods})
        self.collector.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.collector.stop()
        self.kernel.close()


def startup_s(pods: tuple[TestPod, ...]) -> float:
    """Seconds from nothing to probes on these pods and a reader that reads."""
    started_s = time.monotonic()
    with Watch(pods, statistics=True):
        return time.monotonic() - started_s


def empty_program_ns(calls: int = 300_000) -> float:
    """Mean run time that the kernel reports for a program that does nothing: the floor for all others."""
    kernel = KernelProbes()
    kernel.load()
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    try:
        with trivial_program(RAW_TRACEPOINT) as program_fd:
            link_fd = libbpf.bpf_raw_tracepoint_open(b"sys_enter", program_fd)
            if link_fd < 0:
                return float("nan")
            kernel.enable_stats()
            cost = ProgramCost(signal="", hook="", program="", fd=program_fd)
            kernel.costs.append(cost)
            for _ in range(calls):
                os.getppid()
            kernel.read_costs()
            os.close(link_fd)
            return cost.run_time_ns / max(1, cost.run_count)
    finally:
        kernel.close()
