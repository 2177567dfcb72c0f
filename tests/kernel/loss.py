"""Probes that are driven into losing events, and the kernel's own counters to compare with."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tests.kernel.pods import TestPod
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.probes.collector import LOSS_CHANNELS, Collector
from ztprobe.probes.kernel import KernelProbes

CLOSED_PORT = 9
OPEN_PORT = 50051
Pods = tuple[TestPod, TestPod]


@contextlib.contextmanager
def probes(
    pods: Pods, *, interfaces: bool = False, hooks: bool = True, **options: Any
) -> Iterator[tuple[KernelProbes, Collector]]:
    """Probes on both pods with a collector that drains only when it is told to."""
    kernel = KernelProbes(**options)
    collector = None
    try:
        kernel.load()
        for pod in pods:
            kernel.trace_netns(inode(pod.netns))
        if hooks:
            kernel.attach()
        if interfaces:
            for pod in pods:
                kernel.attach_interface(pod.netns, "eth0")
        collector = Collector(kernel, {inode(pod.netns): pod.name for pod in pods})
        yield kernel, collector
    finally:
        if collector is not None:
            collector.stop()
        kernel.close()


def knock(pods: Pods, datagrams: int) -> None:
    """Datagrams from the first pod to a closed port of the second: one dropped packet each."""
    with entered(pods[0].netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(datagrams):
            with contextlib.suppress(ConnectionRefusedError):
                sender.sendto(b"x", (pods[1].address, CLOSED_PORT))


def snmp(pod: TestPod, protocol: str, name: str) -> int:
    """A counter of the kernel's own, of one pod."""
    with entered(pod.netns):
        # /proc/net is the reading thread's namespace only under its own directory
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith(f"{protocol}:"))
    return int(dict(zip(names, values, strict=True))[name])


def drops(tables: dict[str, pd.DataFrame], pod: TestPod, reason: str) -> int:
    mine = tables["drops"][tables["drops"]["pod"] == pod.name]
    return int((mine["reason"] == reason).sum())


def logged(collector: Collector, channel: str) -> int:
    return sum(entry["count"] for entry in collector.loss_log if entry["channel"] == channel)


def only(channel: str, count: int) -> dict[str, int]:
    return dict.fromkeys(LOSS_CHANNELS, 0) | {channel: count}
