"""The same addresses and ports again: another connection, with a handshake and messages of its own."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP

from analysis.evidence.reader import read_events
from analysis.evidence.values import LoKey, Wire
from tests.kernel.loss import probes
from tests.kernel.pods import TestPod, brief_connections
from tests.kernel.watching import Watched, setups_of
from ztprobe.events.kinds import Direction, Hook
from ztprobe.kernelnet.netns import entered
from ztprobe.probes.collector import LOSS_CHANNELS

PORT = 50051
MESSAGE_BYTES = 50_021
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def _sysctl(pod: TestPod, name: str, value: str) -> None:
    with entered(pod.netns):
        Path(f"/proc/sys/net/ipv4/{name}").write_text(value)


def _exchange(client: socket.socket, server: socket.socket) -> None:
    client.sendall(bytes(MESSAGE_BYTES))
    left = MESSAGE_BYTES
    while left:
        left -= len(server.recv(left))


def test_ports_that_come_again(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    """Two source ports for six connections, whose last ones are still in TIME_WAIT (tcp_tw_reuse)."""
    a, b = pods
    _sysctl(a, "ip_local_port_range", "40000 40001")
    _sysctl(a, "tcp_tw_reuse", "1")
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    began_ns = []
    for _ in range(6):
        client = _connected(a, b.address)
        began_ns.append(time.monotonic_ns())
        server, _ = listener.accept()
        _exchange(client, server)
        client.close()
        server.close()
    listener.close()
    time.sleep(0.05)
    tables = watched.stop()
    assert watched.loss == dict.fromkeys(watched.loss, 0)
    setups = setups_of(tables, a, PORT)
    assert sorted(setups) == [(port, number) for port in (40000, 40001) for number in range(3)]
    in_order = sorted((s for s in setups.values() if s is not None), key=lambda setup: setup.syn_ns)
    assert [setup.syn_count for setup in in_order] == [1] * 6
    for setup, began in zip(in_order, began_ns, strict=True):
        assert setup.established_ns is not None and setup.syn_ns < setup.established_ns < began
    events = read_events(tables)
    for wire in events.wires:
        for pod, direction in ((a, Direction.TX), (b, Direction.RX)):
            (burst,) = events.bursts[pod.name, Hook.ETH, wire][direction]
            assert burst.end_seq - burst.first_seq == MESSAGE_BYTES
    assert len(events.wires) == 6


def _connected(pod: TestPod, address: str) -> socket.socket:
    """As soon as a port may be used again (a second after it was last)."""
    deadline = time.monotonic() + 10
    while True:
        with entered(pod.netns), contextlib.suppress(OSError):
            return socket.create_connection((address, PORT))
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("loopback", [False, True], ids=["wire", "loopback"])
def test_one_port_again_and_again(pods: tuple[TestPod, TestPod], watched: Watched, loopback: bool) -> None:
    """After a reset a port is free at once."""
    a, b = pods
    here, address = (a, "127.0.0.1") if loopback else (b, b.address)
    with entered(here.netns):
        listener = socket.create_server((address, PORT))
    for _ in range(4):
        with entered(a.netns):
            client = socket.create_connection((address, PORT), source_address=("", 40_007))
        server, _ = listener.accept()
        _exchange(client, server)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        client.close()
        server.close()
    listener.close()
    time.sleep(0.05)
    events = read_events(watched.stop())
    assert watched.loss == dict.fromkeys(watched.loss, 0)
    if loopback:
        hook, keys = Hook.LO, {key for _, _, key in events.bursts if isinstance(key, LoKey)}
        assert keys == {LoKey(a.name, 40_007, PORT, number) for number in range(4)}
    else:
        hook, keys = Hook.ETH, {key for _, _, key in events.bursts if isinstance(key, Wire)}
        assert sorted(key.number for key in keys) == [0, 1, 2, 3]
    for key in keys:
        found = [
            bursts for (pod, at, of), bursts in events.bursts.items() if (pod, at, of) == (a.name, hook, key)
        ]
        assert [
            burst.end_seq - burst.first_seq for d in found for bursts in d.values() for burst in bursts
        ] == [MESSAGE_BYTES]
        # What the sockets themselves said is the same connection's, of both ends on loopback.
        read = events.bursts[here.name, Hook.SOCK, key][Direction.RX]
        assert [burst.end_seq - burst.first_seq for burst in read] == [MESSAGE_BYTES]


@pytest.mark.parametrize("loopback", [False, True], ids=["wire", "loopback"])
def test_a_syn_with_another_number_begins_another_connection(
    pods: tuple[TestPod, TestPod], watched: Watched, loopback: bool
) -> None:
    """Whether the end of the one before was seen or not; a SYN that is sent again begins none."""
    a, b = pods
    here, source, target = (a, "127.0.0.1", "127.0.0.1") if loopback else (b, a.address, b.address)
    with entered(here.netns):  # nobody answers
        rules = f"add rule ip t in tcp dport {PORT} drop"
        chain = "add table ip t; add chain ip t in { type filter hook input priority 0; }; "
        subprocess.run(["nft", chain + rules], check=True)
    with entered(a.netns):
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for seq in (1000, 1000, 5000):
        syn = IP(src=source, dst=target) / TCP(sport=40_007, dport=PORT, flags="S", seq=seq)
        sender.sendto(bytes(syn), (target, 0))
    sender.close()
    time.sleep(0.05)
    tables = watched.stop()
    for pod in {a.name, here.name}:
        mine = tables["connections"][tables["connections"]["pod"] == pod]
        assert list(mine["first_seq"]) == [1000, 5000]
        packets = tables["packets"]
        of = packets["connection"][(packets["pod"] == pod) & (packets["tcp_flags"] == 2)]
        assert [list(of).count(connection) for connection in mine["connection"]] == [2, 1]
    # Both ends name them alike.
    events = read_events(tables)
    keys = {key for _, key in events.packets}
    assert sorted(key.number for key in keys) == [0, 1]


def test_a_syn_that_meets_an_earlier_connection_is_one_connection(
    pods: tuple[TestPod, TestPod], watched: Watched
) -> None:
    """The server never heard of the earlier one's reset; it is told between a SYN and the same SYN again."""
    a, b = pods
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    _nft(b, "add table ip t; add chain ip t in { type filter hook input priority 0; }")
    for number in range(2):
        with entered(a.netns):
            client = socket.create_connection((b.address, PORT), timeout=10, source_address=("", 40_007))
        server, _ = listener.accept()
        if number == 0:
            _nft(b, "add rule ip t in tcp flags rst drop")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            client.close()
            _nft(b, "flush table ip t")
            forgotten = server
    _exchange(client, server)
    for one in (client, server, forgotten, listener):
        one.close()
    time.sleep(0.05)
    tables = watched.stop()
    setups = setups_of(tables, a, PORT)
    assert {key: setup.syn_count for key, setup in setups.items() if setup} == {
        (40_007, 0): 1,
        (40_007, 1): 2,
    }
    for pod in pods:
        assert (tables["connections"]["pod"] == pod.name).sum() == 2
    burst = read_events(tables).bursts[
        b.name, Hook.ETH, max(read_events(tables).wires, key=lambda w: w.number)
    ]
    assert [one.end_seq - one.first_seq for one in burst[Direction.RX]] == [MESSAGE_BYTES]


def _nft(pod: TestPod, rules: str) -> None:
    with entered(pod.netns):
        subprocess.run(["nft", rules], check=True)


def test_closed_connections_give_their_places_back(pods: tuple[TestPod, TestPod]) -> None:
    """A socket that closes has lost the port that the kernel chose; its connection is known all the same."""
    connections = 40
    with probes(pods, interfaces=True, map_entries={"conns": 8}) as (_, collector):
        brief_connections(pods, connections, PORT)
        time.sleep(0.1)
        collector.stop()
        assert collector.loss() == dict.fromkeys(LOSS_CHANNELS, 0)
        states = collector.tables()["state_changes"]
    closed = states[(states["new_state"] == "close") & (states["old_state"] != "listen")]
    assert len(closed) == 2 * connections and (closed["connection"] > 0).all()
