"""The probes on two bare pods, as the agent would put them there."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pandas as pd

from analysis.evidence.reader import read_events
from analysis.evidence.values import Wire
from analysis.ledger.handshakes import Setup, read_setup
from tests.kernel.pods import TestPod
from ztprobe.kernelnet.netns import inode
from ztprobe.probes.collector import Collector
from ztprobe.probes.kernel import KernelProbes


def with_ports(tables: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """A table's rows with their connection's ``local_port`` and ``remote_port`` beside them."""
    connections = tables["connections"][["connection", "local_port", "remote_port"]]
    mine = tables[name].drop(columns=["local_port", "remote_port"], errors="ignore")
    return mine.merge(connections, on="connection", how="left")


def setups_of(
    tables: Mapping[str, pd.DataFrame], pod: TestPod, port: int
) -> dict[tuple[int, int], Setup | None]:
    """(a client's port, how many connections it had from there before) -> how the connection came about."""
    found = {}
    for (name, wire), packets in read_events(tables).packets.items():
        if name == pod.name and isinstance(wire, Wire) and wire.peer_of(pod.address).port == port:
            own = wire.one if wire.one.address == pod.address else wire.other
            found[own.port, wire.number] = read_setup(packets)
    return found


class Watched:
    """Probes on both pods; `tables` after `stop`."""

    def __init__(self, pods: tuple[TestPod, TestPod], *, attached: bool = False) -> None:
        self.kernel = KernelProbes(attached=attached)
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
