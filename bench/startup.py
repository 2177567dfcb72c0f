"""From nothing to all probes attached: with what was compiled before, and for the first time since boot."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.kernel.pods import TestPod
from ztprobe.kernelnet.netns import inode
from ztprobe.probes import compiler
from ztprobe.probes.collector import Collector
from ztprobe.probes.kernel import KernelProbes

__all__ = ("Watch", "startup_s")


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


def startup_s(pods: tuple[TestPod, ...], *, first: bool = False) -> float:
    """Seconds from nothing to probes on these pods and a reader that reads.

    :param first: nothing has been compiled yet.
    """
    with tempfile.TemporaryDirectory(prefix="ztprobe-bench-") as empty:
        usual = compiler.COMPILED_DIR
        if first:
            compiler.COMPILED_DIR = Path(empty) / "compiled"
        try:
            started_s = time.monotonic()
            with Watch(pods, statistics=True):
                return time.monotonic() - started_s
        finally:
            compiler.COMPILED_DIR = usual
