"""Known workloads against the probes: what went over the wire is what the events say, to the byte."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import pytest

from tests.kernel.pods import TestPod, two_pods
from tests.kernel.watching import Watched
from ztprobe.events.tables import Direction, Hook, PacketKind, PointKind
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.preflight import choose_hooks, collect
from ztprobe.probes.collector import Collector, coverage
from ztprobe.probes.kernel import KernelProbes

# More where a whole CPU is emulated in software (tools/test-vm).
_APART_NS = 5_000_000 * float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))

MESSAGES_PORT, CONNECTIONS_PORT, CLOSED_PORT, FILTERED_PORT = 50051, 50052, 9, 7777
MESSAGE_BYTES = 1_000_003  # prime
EXCHANGES, CONNECTIONS, REFUSED, FILTERED = 7, 23, 13, 17
FILTERED_BYTES = 19


@dataclass(frozen=True)
class Seen:
    """What the probes on A and B made of all the workloads below, and what the workloads know themselves."""

    a: str
    b: str
    hooks: dict[str, str]
    reasons: dict[int, str]  # of drops, by the kernel's number
    tables: dict[str, pd.DataFrame]
    loss: dict[str, int]
    exchanges: list[tuple[int, int]]
    filtered: int  # by the filter's own counter
    elsewhere_port: int  # of a listener on this machine's loopback

    def drops(self, pod: str, reason: str) -> pd.DataFrame:
        points = self.tables["points"]
        drops = points[(points["kind"] == PointKind.DROP) & (points["pod"] == pod)]
        return drops[[self.reasons[number] == reason for number in drops["a"]]]


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    """All workloads, one after the other, under one watch.

    To load the probes takes seconds, and 20 of them where a CPU is emulated in software.
    """
    with two_pods() as pods:
        watched = Watched(pods)
        try:
            exchanges = _exchange(pods, 0.02)
            _connect(pods)
            _send(pods, CLOSED_PORT, REFUSED, b"x")
            filtered = _send_filtered(pods)
            elsewhere_port = _talk_elsewhere()
            time.sleep(0.05)
            tables = watched.stop()
        finally:
            watched.close()
        a, b = (pod.name for pod in pods)
        reasons = watched.kernel.reason_names
        yield Seen(
            a, b, watched.hooks, reasons, tables, watched.loss, exchanges, filtered, elsewhere_port
        )  # fmt: skip


def _receive(sock: socket.socket, n: int) -> None:
    while n > 0:
        n -= len(sock.recv(min(n, 1 << 16)))


def _exchange(pods: tuple[TestPod, TestPod], pause_s: float) -> list[tuple[int, int]]:
    """A sends, B answers after a pause, so many times; returns B's (had it all, began to answer) in ns."""
    a, b = pods
    log: list[tuple[int, int]] = []
    with entered(b.netns):
        listener = socket.create_server((b.address, MESSAGES_PORT))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for _ in range(EXCHANGES):
                _receive(connection, MESSAGE_BYTES)
                had_ns = time.monotonic_ns()
                time.sleep(pause_s)
                log.append((had_ns, time.monotonic_ns()))
                connection.sendall(b"d" * MESSAGE_BYTES)
            connection.recv(1)

    server = threading.Thread(target=serve)
    server.start()
    with entered(a.netns):
        client = socket.create_connection((b.address, MESSAGES_PORT))
    with client:
        for _ in range(EXCHANGES):
            client.sendall(b"u" * MESSAGE_BYTES)
            _receive(client, MESSAGE_BYTES)
    server.join()
    listener.close()
    return log


def _connect(pods: tuple[TestPod, TestPod]) -> None:
    a, b = pods
    with entered(b.netns):
        listener = socket.create_server((b.address, CONNECTIONS_PORT), backlog=64)
    for _ in range(CONNECTIONS):
        with entered(a.netns):
            client = socket.create_connection((b.address, CONNECTIONS_PORT))
        accepted, _ = listener.accept()
        client.close()
        accepted.close()
    listener.close()


def _send(pods: tuple[TestPod, TestPod], port: int, datagrams: int, payload: bytes) -> None:
    a, b = pods
    with entered(a.netns):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(datagrams):
            with contextlib.suppress(ConnectionRefusedError):
                sender.sendto(payload, (b.address, port))
    time.sleep(0.05)


def _send_filtered(pods: tuple[TestPod, TestPod]) -> int:
    """:returns: how many datagrams B's filter has dropped."""
    rules = "add table ip t; add chain ip t in { type filter hook input priority 0; }; "
    rules += f"add rule ip t in udp dport {FILTERED_PORT} counter drop"
    with entered(pods[1].netns):
        subprocess.run(["nft", rules], check=True)
    _send(pods, FILTERED_PORT, FILTERED, b"x" * FILTERED_BYTES)
    command = ["nft", "list", "table", "ip", "t"]
    with entered(pods[1].netns):
        listing = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(listing.stdout.split("packets")[1].split()[0])


def _talk_elsewhere() -> int:
    """A connection in a namespace that is not traced. :returns: its listener's port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = listener.accept()
    client.sendall(b"x" * 65536)
    for sock in (client, accepted, listener):
        sock.close()
    return port


def _of_port(table: pd.DataFrame, port: int) -> pd.DataFrame:
    return table[(table["lport"] == port) | (table["rport"] == port)]


def test_messages_are_seen_whole_at_every_hop(seen: Seen) -> None:
    bursts = _of_port(seen.tables["bursts"], MESSAGES_PORT)
    for pod, hook, direction in (
        (seen.a, Hook.ETH, Direction.TX),
        (seen.b, Hook.ETH, Direction.RX),
        (seen.b, Hook.SOCK, Direction.RX),
        (seen.b, Hook.ETH, Direction.TX),
        (seen.a, Hook.ETH, Direction.RX),
        (seen.a, Hook.SOCK, Direction.RX),
    ):
        those = bursts[(bursts["pod"] == pod) & (bursts["hook"] == hook) & (bursts["dir"] == direction)]
        end_seq = those["max_seq"]
        if hook == Hook.SOCK:  # whose last read may have been of a few bytes, which is told apart
            end_seq = those["tail_seq"].where(those["tail_seq"] != 0, end_seq)
        assert list(end_seq - those["first_seq"]) == [MESSAGE_BYTES] * EXCHANGES, (pod, hook, direction)
    mine = bursts[bursts["pod"] == seen.b]
    reads = mine[(mine["hook"] == Hook.SOCK) & (mine["dir"] == Direction.RX)]
    sends = mine[(mine["hook"] == Hook.ETH) & (mine["dir"] == Direction.TX)]
    times = zip(reads["last_ns"], sends["first_ns"], seen.exchanges, strict=True)
    for read_ns, sent_ns, (had_ns, began_ns) in times:
        # The program's own clock reads bracket the kernel's: read before it knew, sent after it began.
        assert -_APART_NS < read_ns - had_ns <= 0
        assert 0 <= sent_ns - began_ns < _APART_NS


def test_nothing_is_lost(seen: Seen) -> None:
    assert seen.loss == dict.fromkeys(seen.loss, 0)


def test_connections_are_counted(seen: Seen) -> None:
    packets = _of_port(seen.tables["packets"], CONNECTIONS_PORT)
    mine = packets[(packets["pod"] == seen.a) & (packets["kind"] == PacketKind.SETUP)]
    syn = mine[(mine["dir"] == Direction.TX) & (mine["flags"] & 18 == 2)]
    syn_ack = mine[(mine["dir"] == Direction.RX) & (mine["flags"] & 18 == 18)]
    assert (len(syn), len(syn_ack)) == (CONNECTIONS, CONNECTIONS)
    points = _of_port(seen.tables["points"], CONNECTIONS_PORT)
    states = points[(points["kind"] == PointKind.STATE) & (points["b"] == 1)]  # TCP_ESTABLISHED
    assert len(states[states["pod"] == seen.a]) == CONNECTIONS  # client side
    assert len(states[states["pod"] == seen.b]) == CONNECTIONS  # server side


def test_a_closed_ports_drops_are_named(seen: Seen) -> None:
    drops = seen.drops(seen.b, "NO_SOCKET")
    assert len(drops) == REFUSED
    assert set(drops["rport"]) == {CLOSED_PORT}


def test_filter_drops_equal_the_filters_own_counter(seen: Seen) -> None:
    drops = seen.drops(seen.b, "NETFILTER_DROP")
    assert seen.filtered == FILTERED == len(drops)
    assert set(drops["rport"]) == {FILTERED_PORT} and set(drops["c"]) == {FILTERED_BYTES}


def test_other_namespaces_leave_no_trace(seen: Seen) -> None:
    for name in ("points", "packets", "bursts"):
        table = seen.tables[name]
        assert _of_port(table, seen.elsewhere_port).empty, name
        strangers = table[~table["pod"].isin([seen.a, seen.b])]
        if name == "points":  # a wait for a CPU is a thread's, and in no namespace
            strangers = strangers[strangers["kind"] != PointKind.WAIT]
        assert strangers.empty, name


def test_a_full_ring_is_counted_exactly(pods: tuple[TestPod, TestPod]) -> None:
    """Nobody reads; what is not in the ring afterwards was counted as lost."""
    a, b = pods
    kernel = KernelProbes(ring_bytes=4096)
    try:
        kernel.load()
        kernel.attach()
        for pod in pods:
            kernel.trace_netns(inode(pod.netns))
        with entered(a.netns):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams = 211
        for _ in range(datagrams):
            with contextlib.suppress(ConnectionRefusedError):
                sender.sendto(b"x", (b.address, 9))
        sender.close()
        time.sleep(0.05)
        collector = Collector(kernel, {inode(pod.netns): pod.name for pod in pods})
        collector.stop()
        tables = collector.tables()
        loss = collector.loss()
        drops = tables["points"][tables["points"]["kind"] == PointKind.DROP]
        reasons = [kernel.reason_names[reason] for reason in drops["a"]]
        assert 0 < len(drops) < datagrams
        assert reasons.count("NO_SOCKET") + loss["ring_buffer_full"] >= datagrams
        assert collector.events_seen + loss["ring_buffer_full"] == kernel.counters()["tried"]
        assert coverage(collector.events_seen, loss) < 0.95
    finally:
        kernel.close()


def test_loading_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """BCC prints a compiler's warnings on standard error, where they would tear the progress display."""
    kernel = KernelProbes()
    try:
        kernel.load()
        kernel.attach()
    finally:
        kernel.close()
    assert capfd.readouterr() == ("", "")


def test_hooks_in_use_are_those_that_the_doctor_names(seen: Seen) -> None:
    assert seen.hooks == {verdict.signal: verdict.hook for verdict in choose_hooks(collect().kernel)}
