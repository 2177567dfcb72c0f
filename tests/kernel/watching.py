"""The probes on two bare pods, as the agent would put them there."""

from __future__ import annotations

import os

import pandas as pd

from tests.kernel.pods import TestPod
from ztprobe.kernelnet.netns import inode
from ztprobe.probes.collector import Collector
from ztprobe.probes.kernel import KernelProbes


class Watched:
    """Probes on both pods; `tables` after `stop`."""

    def __init__(self, pods: tuple[TestPod, TestPod]) -> None:
        self.kernel = KernelProbes()
        self.kernel.load()
        self.hooks = self.kernel.attach()
        self.kernel.enable_stats()
        for pod in pods:
            self.kernel.trace_netns(inode(pod.netns))
            self.kernel.attach_interface(pod.netns, "eth0")
        self.kernel.trace_process(os.getpid(), proxy=False)
        self.collector = Collector(self.kernel, {inode(pod.netns): pod.name for pod in pods})
        self.collector.start()

    def stop(self) -> dict[str, pd.DataFrame]:
        self.collector.stop()
        self.tables = self.collector.tables()
        self.loss = self.collector.loss()
        return self.tables

    def close(self) -> None:
        """Detach, whether stopped or not. Idempotent."""
        self.collector.stop()
        self.kernel.close()
