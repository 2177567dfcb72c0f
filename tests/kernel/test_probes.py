"""Known workloads against the probes: what went over the wire is what the events say, to the byte."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time

import pytest

from tests.kernel.pods import TestPod, brief_connections
from tests.kernel.watching import Watched
from ztprobe.events.kinds import Direction, Hook
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.preflight import choose_hooks, collect
from ztprobe.probes.collector import Collector, coverage
from ztprobe.probes.kernel import KernelProbes

# More where a whole CPU is emulated in software (tools/test-vm).
_APART_NS = 5_000_000 * float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))

PORT = 50051
MESSAGE_BYTES = 1_000_003  # prime


def _receive(sock: socket.socket, n: int) -> None:
    while n > 0:
        n -= len(sock.recv(min(n, 1 << 16)))


def _exchange(pods: tuple[TestPod, TestPod], exchanges: int, pause_s: float) -> list[tuple[int, int]]:
    """A sends, B answers after a pause, so many times; returns B's (had it all, began to answer) in ns."""
    a, b = pods
    log: list[tuple[int, int]] = []
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for _ in range(exchanges):
                _receive(connection, MESSAGE_BYTES)
                had_ns = time.monotonic_ns()
                time.sleep(pause_s)
                log.append((had_ns, time.monotonic_ns()))
                connection.sendall(b"d" * MESSAGE_BYTES)
            connection.recv(1)

    server = threading.Thread(target=serve)
    server.start()
    with entered(a.netns):
        client = socket.create_connection((b.address, PORT))
    with client:
        for _ in range(exchanges):
            client.sendall(b"u" * MESSAGE_BYTES)
            _receive(client, MESSAGE_BYTES)
    server.join()
    listener.close()
    time.sleep(0.05)
    return log


def test_messages_are_seen_whole_at_every_hop(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    exchanges = 7
    log = _exchange(pods, exchanges, 0.02)
    bursts = watched.stop()["bursts"]
    assert watched.loss == dict.fromkeys(watched.loss, 0)
    for pod, hook, direction in (
        (pods[0], Hook.ETH, Direction.TX),
        (pods[1], Hook.ETH, Direction.RX),
        (pods[1], Hook.SOCK, Direction.RX),
        (pods[1], Hook.ETH, Direction.TX),
        (pods[0], Hook.ETH, Direction.RX),
        (pods[0], Hook.SOCK, Direction.RX),
    ):
        seen = bursts[
            (bursts["pod"] == pod.name) & (bursts["hook"] == hook) & (bursts["direction"] == direction)
        ]
        end_seq = seen["end_seq"]
        if hook == Hook.SOCK:  # whose last read may have been of a few bytes, which is told apart
            end_seq = seen["tail_end_seq"].where(seen["tail_end_seq"] != 0, end_seq)
        assert list(end_seq - seen["first_seq"]) == [MESSAGE_BYTES] * exchanges, (
            pod.name,
            hook,
            direction,
        )
    reads = bursts[
        (bursts["pod"] == pods[1].name)
        & (bursts["hook"] == Hook.SOCK)
        & (bursts["direction"] == Direction.RX)
    ]
    sends = bursts[
        (bursts["pod"] == pods[1].name) & (bursts["hook"] == Hook.ETH) & (bursts["direction"] == Direction.TX)
    ]
    for read_ns, sent_ns, (had_ns, began_ns) in zip(reads["last_ns"], sends["first_ns"], log, strict=True):
        # The program's own clock reads bracket the kernel's: read before it knew, sent after it began.
        assert -_APART_NS < read_ns - had_ns <= 0
        assert 0 <= sent_ns - began_ns < _APART_NS


def _ifindex(pod: TestPod) -> int:
    with entered(pod.netns):
        return socket.if_nametoindex("eth0")


def test_connections_are_counted(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    a, b = pods
    connections = 23
    brief_connections(pods, connections, PORT)
    time.sleep(0.05)
    tables = watched.stop()
    packets, states = tables["packets"], tables["state_changes"]
    mine = packets[(packets["pod"] == a.name) & (packets["kind"] == "setup")]
    syn = mine[(mine["direction"] == Direction.TX) & (mine["tcp_flags"] & 18 == 2)]
    syn_ack = mine[(mine["direction"] == Direction.RX) & (mine["tcp_flags"] & 18 == 18)]
    assert (len(syn), len(syn_ack)) == (connections, connections)
    states = states[states["new_state"] == "established"]
    assert len(states[states["pod"] == a.name]) == connections  # client side
    assert len(states[states["pod"] == b.name]) == connections  # server side


def test_refused_connection_and_closed_port_drop_are_named(
    pods: tuple[TestPod, TestPod], watched: Watched
) -> None:
    a, b = pods
    datagrams = 13
    with entered(a.netns):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(datagrams):
        with contextlib.suppress(ConnectionRefusedError):
            sender.sendto(b"x", (b.address, 9))
    sender.close()
    time.sleep(0.05)
    drops = watched.stop()["drops"]
    drops = drops[(drops["pod"] == b.name) & (drops["reason"] == "NO_SOCKET")]
    assert len(drops) == datagrams
    # Who dropped it, where it was, and its headers; the payload is one byte.
    assert set(drops["location"]) <= {"__udp4_lib_rcv", "udp_rcv", "udp_unicast_rcv_skb"}, set(
        drops["location"]
    )
    assert set(drops["ifindex"]) == {_ifindex(b)} and set(drops["direction"]) == {Direction.RX}
    assert set(drops["source"]) == {a.address} and set(drops["target"]) == {b.address}
    assert set(drops["target_port"]) == {9} and set(drops["payload_bytes"]) == {1}
    assert {head[-1:] for head in drops["head"]} == {b"x"} and set(drops["head"].map(len)) == {20 + 8 + 1}


def test_filter_drops_equal_the_filters_own_counter(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    a, b = pods
    datagrams = 17
    rules = "add table ip t; add chain ip t in { type filter hook input priority 0; }; "
    rules += "add rule ip t in udp dport 7777 counter drop"
    with entered(b.netns):
        subprocess.run(["nft", rules], check=True)
    with entered(a.netns):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(datagrams):
        sender.sendto(b"x" * 19, (b.address, 7777))
    sender.close()
    time.sleep(0.05)
    with entered(b.netns):
        listing = subprocess.run(
            ["nft", "list", "table", "ip", "t"], check=True, capture_output=True, text=True
        )
    counted = int(listing.stdout.split("packets")[1].split()[0])
    drops = watched.stop()["drops"]
    drops = drops[drops["pod"] == b.name]
    assert counted == datagrams == list(drops["reason"]).count("NETFILTER_DROP")
    assert set(drops["location"]) == {"nft_do_chain"}
    assert set(drops["target_port"]) == {7777} and set(drops["payload_bytes"]) == {19}


def test_other_namespaces_leave_no_trace(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    client.sendall(b"x" * 65536)
    for sock in (client, accepted, listener):
        sock.close()
    tables = watched.stop()
    assert all(table.empty for name, table in tables.items() if name not in ("drops", "cpu_waits"))


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
        drops = tables["drops"]
        assert 0 < len(drops) < datagrams
        assert list(drops["reason"]).count("NO_SOCKET") + loss["ring_buffer_full"] >= datagrams
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


def test_hooks_in_use_are_those_that_the_doctor_names(watched: Watched) -> None:
    assert watched.hooks == {verdict.signal: verdict.hook for verdict in choose_hooks(collect().kernel)}


def test_a_message_that_nothing_has_closed_is_kept_at_the_end(
    pods: tuple[TestPod, TestPod], watched: Watched
) -> None:
    (a, b), sent_bytes = pods, 30_011
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    with entered(a.netns):
        client = socket.create_connection((b.address, PORT))
    with listener, client, listener.accept()[0] as server:
        client.sendall(b"u" * sent_bytes)  # fits into the receiver's buffer
        _receive(server, sent_bytes)
        time.sleep(0.05)
        bursts = watched.stop()["bursts"]  # nobody answers, and both sockets are open
    for pod, hook, direction in (
        (a, Hook.SOCK, Direction.TX),
        (a, Hook.ETH, Direction.TX),
        (b, Hook.ETH, Direction.RX),
        (b, Hook.SOCK, Direction.RX),
    ):
        place = (bursts["pod"] == pod.name) & (bursts["hook"] == hook) & (bursts["direction"] == direction)
        assert bursts[place]["bytes"].sum() == sent_bytes, (pod.name, hook, direction)
        assert (bursts[place]["first_ns"] <= bursts[place]["last_ns"]).all()
