"""Maps that are full: what found no room is counted, to the event, and none of them evicts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pandas as pd

from tests.kernel.loss import CLOSED_PORT, OPEN_PORT, Pods, logged, only, probes
from ztprobe.events.kinds import Direction, Hook
from ztprobe.kernelnet.netns import entered
from ztprobe.probes.collector import LOSS_CHANNELS


def _refused(pods: Pods, connections: int) -> None:
    with entered(pods[0].netns):
        for _ in range(connections):
            with socket.socket() as client, contextlib.suppress(ConnectionRefusedError):
                client.connect((pods[1].address, CLOSED_PORT))


def test_map_full_conns(pods: Pods) -> None:
    """More connections at once than the map holds: one failed insertion for each SYN that found it full."""
    a, b = pods
    room, connections = 6, 20
    with probes(pods, interfaces=True, map_entries={"conns": room}) as (_, collector):
        with entered(b.netns):
            listener = socket.create_server((b.address, OPEN_PORT), backlog=64)
        clients = []
        with entered(a.netns):
            for _ in range(connections):
                clients.append(socket.create_connection((b.address, OPEN_PORT)))
        time.sleep(0.05)
        collector.drain()
        # SYN and SYN-ACK, each seen at both ends; a connection that has its entry tries no second time.
        # Entries are per end: the first connections take two each.
        held = room // 2
        true = 4 * (connections - held)
        assert collector.loss() == only("map_full", true)
        setups = pd.concat([collector.tables()["packets"]])
        assert len(setups[setups["kind"] == "setup"]) == 4 * held
        for client in clients:
            client.close()
        listener.close()


def test_refused_connections_leave_nothing_behind(pods: Pods) -> None:
    """Far more refused connections than the map holds, one after the other: nothing is lost."""
    with probes(pods, interfaces=True, map_entries={"conns": 8}) as (_, collector):
        _refused(pods, 100)
        time.sleep(0.02)
        collector.stop()
        assert collector.loss() == dict.fromkeys(LOSS_CHANNELS, 0)
        packets = collector.tables()["packets"]
        assert len(packets[packets["tcp_flags"] & 18 == 2]) == 2 * 100


def _transfer(pods: Pods, connections: int, writes: int, chunk: bytes) -> None:
    """Open connections, then write on each in turn; all stay open until everything arrived."""
    a, b = pods
    with entered(b.netns):
        listener = socket.create_server((b.address, OPEN_PORT), backlog=64)
    pairs = []
    for _ in range(connections):
        with entered(a.netns):
            client = socket.create_connection((b.address, OPEN_PORT))
        pairs.append((client, listener.accept()[0]))
    for client, server in pairs:
        for _ in range(writes):
            client.sendall(chunk)
            left = len(chunk)
            while left:
                left -= len(server.recv(left, socket.MSG_WAITALL))
    listener.close()
    time.sleep(0.02)
    for client, server in pairs:
        client.close()
        server.close()


def test_map_full_conns_of_readers(pods: Pods) -> None:
    """Reads and writes of more connections than the map holds; each one that has no entry is counted."""
    room, connections, writes = 4, 9, 5
    with probes(pods, map_entries={"conns": room}) as (kernel, collector):
        kernel.trace_process(os.getpid(), proxy=False)
        _transfer(pods, connections, writes, b"x" * 1000)
        collector.stop()
        # one entry for each end, one write and one read for each chunk
        assert collector.loss()["map_full"] == 2 * writes * (connections - room // 2)
        bursts = collector.tables()["bursts"]
        assert bursts[bursts["hook"] == Hook.SOCK]["packets"].sum() == 2 * writes * (room // 2)


def test_map_full_sendlogs(pods: Pods) -> None:
    """A sender whose log found no room: one count for each large packet that should have gone there."""
    room, connections, writes = 2, 5, 16
    with probes(pods, interfaces=True, map_entries={"sendlogs": room}) as (_, collector):
        _transfer(pods, connections, writes, b"x" * 1000)
        collector.stop()
        assert collector.loss()["map_full"] == writes * (connections - room)
        bursts = collector.tables()["bursts"]
        sent = bursts[(bursts["hook"] == Hook.ETH) & (bursts["direction"] == Direction.TX)]
        assert sent["packets"].sum() == writes * connections


def test_map_full_last_read_and_pairs(pods: Pods) -> None:
    """A proxy of many threads in a map for few of them, then of many pairs in a map for few."""
    room, threads = 3, 8
    with probes(pods, map_entries={"last_read": room}) as (kernel, collector):
        kernel.trace_process(os.getpid(), proxy=True)
        _relay(pods, threads)
        collector.stop()
        assert collector.loss()["map_full"] == threads - room
        assert collector.tables()["pairs"]["count"].sum() == room
    with probes(pods, map_entries={"pairs": room}) as (kernel, collector):
        kernel.trace_process(os.getpid(), proxy=True)
        _relay(pods, threads)
        collector.stop()
        assert collector.loss()["map_full"] == threads - room
        assert len(collector.tables()["pairs"]) == room


def _relay(pods: Pods, threads: int) -> None:
    """Each thread reads once from one connection and writes once to another; all live at the same time."""
    a, b = pods
    with entered(b.netns):
        listener = socket.create_server((b.address, OPEN_PORT), backlog=64)
    ends = []
    for _ in range(2 * threads):
        with entered(a.netns):
            client = socket.create_connection((b.address, OPEN_PORT))
        ends.append((client, listener.accept()[0]))
    everybody = threading.Barrier(threads)

    def relay(number: int) -> None:
        (_, source), (_, target) = ends[2 * number], ends[2 * number + 1]
        source.recv(100)
        target.sendall(b"y")
        everybody.wait(timeout=10)

    running = [threading.Thread(target=relay, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    # The main thread's writes come before any read of its own, so they make no pair.
    for client, _ in ends[::2]:
        client.sendall(b"x")
    for thread in running:
        thread.join()
    listener.close()
    for client, server in ends:
        client.close()
        server.close()


def test_map_full_delays(pods: Pods) -> None:
    """Threads that get a CPU while the map is full are counted."""
    with probes(pods, map_entries={"delays": 1}) as (kernel, collector):
        competitor = subprocess.Popen(
            ["python3", "-c", _COMPETITION], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert competitor.stdin is not None and competitor.stdout is not None
        kernel.trace_process(competitor.pid, proxy=False)
        competitor.stdin.write("go\n")
        competitor.stdin.flush()
        competitor.wait(timeout=20)
        collector.stop()
        assert collector.loss()["map_full"] > 0
        assert logged(collector, "map_full") == kernel.counters()["map_full"]


# Many threads of one process that all want the same CPU and sleep in between.
_COMPETITION = """
import os, sys, threading, time
sys.stdin.readline()
os.sched_setaffinity(0, {0})
def run():
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        sum(range(2000))
        time.sleep(0)
threads = [threading.Thread(target=run) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def test_no_map_of_the_probes_evicts(pods: Pods) -> None:
    """What the kernel says of the loaded maps: none is of a kind that drops entries to make room."""
    plain_hash = 1  # BPF_MAP_TYPE_HASH (arrays have nothing to evict); 9 and 10 are the ones that evict (LRU)
    with probes(pods, hooks=False) as (kernel, _):
        for name in (
            "numbers",
            "sendlogs",
            "last_read",
            "pairs",
            "delays",
            "pods",
        ):
            info = Path(f"/proc/self/fdinfo/{kernel.map_fd(name)}").read_text()
            fields = dict(line.split(":", 1) for line in info.splitlines())
            assert int(fields["map_type"]) == plain_hash, name
