"""One run seen by others at the same time: a packet capture, `ss`, the kernel's own counters, nft."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.traffic import measure_connections
from tests.kernel.pods import TestPod, brief_connections, two_pods
from tests.kernel.watching import Watched, setups_of, with_ports
from ztprobe.events.kinds import Direction, Hook
from ztprobe.kernelnet.netns import entered

PORT = 50051
MSS = 1448  # 1500 bytes without the headers of IPv4 and TCP with time stamps
P99_ERROR_NS = 50_000
_SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h; the socket module does not name it
_ETH_P_ALL = 3
_ETH_P_EXPERIMENT = b"\x88\xb5"  # IEEE 802, for local experiments
_SYN, _ACK = 2, 16
_ESTABLISHED = 1


@pytest.fixture
def pods() -> Iterator[tuple[TestPod, TestPod]]:
    # Retransmissions are counted by segment, and traced by packet.
    with two_pods(gso=False) as made:
        yield made


@dataclass(frozen=True)
class Captured:
    """A TCP packet as an AF_PACKET socket saw it; time from the kernel, CLOCK_REALTIME."""

    time_ns: int
    source: tuple[str, int]
    target: tuple[str, int]
    flags: int
    seq: int
    payload_bytes: int


class Capture:
    """Everything on a pod's eth0, with the kernel's time stamps."""

    def __init__(self, pod: TestPod) -> None:
        with entered(pod.netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            self._socket.bind(("eth0", _ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._wait_for_stamps(pod)

    def _wait_for_stamps(self, pod: TestPod) -> None:
        # The kernel turns stamping on from a work queue. Before that a packet gets the time at
        # which it is read, however late that is.
        with entered(pod.netns):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sender.bind(("eth0", 0))
        self._socket.settimeout(1.0)
        deadline = time.monotonic() + 10.0
        frame = b"\x02" * 12 + _ETH_P_EXPERIMENT + bytes(46)
        with sender:
            while time.monotonic() < deadline:
                sender.send(frame)
                sent_ns = time.time_ns()
                time.sleep(0.002)
                data, control, _, _ = self._socket.recvmsg(96, socket.CMSG_SPACE(16))
                seconds, nanoseconds = struct.unpack("qq", control[0][2])
                if data[12:14] == _ETH_P_EXPERIMENT and seconds * 1_000_000_000 + nanoseconds < sent_ns:
                    return
        raise AssertionError("the kernel does not stamp packets when they pass")

    def stop(self) -> list[Captured]:
        """What came by, in order."""
        packets = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                data, control, _, _ = self._socket.recvmsg(96, socket.CMSG_SPACE(16))
                if data[12:14] != b"\x08\x00" or data[23] != 6:
                    continue
                seconds, nanoseconds = struct.unpack("qq", control[0][2])
                sport, dport = struct.unpack_from(">HH", data, 34)
                total_bytes = struct.unpack_from(">H", data, 16)[0]
                packets.append(
                    Captured(
                        seconds * 1_000_000_000 + nanoseconds,
                        (socket.inet_ntoa(data[26:30]), sport),
                        (socket.inet_ntoa(data[30:34]), dport),
                        data[47],
                        int.from_bytes(data[38:42], "big"),
                        total_bytes - 20 - (data[46] >> 4) * 4,
                    )
                )
        self._socket.close()
        return packets


def _first(packets: list[Captured], client_port: int, *, from_client: bool, flags: int) -> int:
    return next(
        p.time_ns
        for p in packets
        if (p.source if from_client else p.target)[1] == client_port and p.flags & (_SYN | _ACK) == flags
    )


def _p99(values: list[int]) -> int:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def test_tcp_handshakes_last_as_long_as_in_a_capture(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    """SYN to SYN-ACK at the client; SYN to the acknowledgement that establishes it at the server."""
    a, b = pods
    connections = 300
    captures = [Capture(pod) for pod in pods]
    ports = brief_connections(pods, connections, PORT)
    time.sleep(0.05)
    tables = watched.stop()
    at_client, at_server = (capture.stop() for capture in captures)
    packets, states = with_ports(tables, "packets"), with_ports(tables, "state_changes")
    setups = setups_of(tables, a, PORT)
    theirs = packets[(packets["pod"] == b.name) & (packets["direction"] == Direction.RX)]
    theirs = theirs[theirs["tcp_flags"] & (_SYN | _ACK) == _SYN].set_index("remote_port")["ts_ns"]
    up = states[(states["pod"] == b.name) & (states["new_state"] == "established")]
    up = up.set_index("remote_port")["ts_ns"]
    client_errors, server_errors = [], []
    for port in ports:
        setup = setups[port, 0]
        assert setup is not None and setup.established_ns is not None and setup.syn_count == 1
        truth_ns = _first(at_client, port, from_client=False, flags=_SYN | _ACK) - _first(
            at_client, port, from_client=True, flags=_SYN
        )
        client_errors.append(abs(setup.established_ns - setup.syn_ns - truth_ns))
        truth_ns = _first(at_server, port, from_client=True, flags=_ACK) - _first(
            at_server, port, from_client=True, flags=_SYN
        )
        server_errors.append(abs(int(up[port]) - int(theirs[port]) - truth_ns))
    print(f"p99 error: client {_p99(client_errors)} ns, server {_p99(server_errors)} ns")
    assert _p99(client_errors) <= P99_ERROR_NS
    assert _p99(server_errors) <= P99_ERROR_NS


def _ss(pod: TestPod) -> dict[str, int]:
    """The pod's only established connection to or from PORT, from `ss -ti`."""
    command = ["ss", "-tinHO", "state", "established", f"( sport = :{PORT} or dport = :{PORT} )"]
    with entered(pod.netns):
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert listing.count("\n") == 1, listing
    return {
        name: int(value)
        for name, _, value in (word.partition(":") for word in listing.split())
        if value.isdigit() and name.startswith("bytes_")
    }


def _retransmitted(pod: TestPod) -> int:
    """TcpRetransSegs, as `nstat` reads it."""
    with entered(pod.netns):
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
    names, values = (line for line in lines if line[0] == "Tcp:")
    return int(values[names.index("RetransSegs")])


def _nft(pod: TestPod, rules: str) -> str:
    with entered(pod.netns):
        done = subprocess.run(["nft", "-f", "-"], input=rules, check=True, capture_output=True, text=True)
    return done.stdout


_LOSS = """
table ip t {
  counter lost { }
  chain in {
    type filter hook prerouting priority 0;
    tcp dport 50051 ip length > 500 numgen random mod 1000 < %d counter name "lost" drop
  }
}
"""


def _receive(sock: socket.socket, n: int) -> None:
    while n > 0:
        n -= len(sock.recv(min(n, 1 << 16)))


@pytest.mark.parametrize("per_mille", [0, 20])
def test_bytes_retransmissions_and_drops_equal_the_kernels_own(
    pods: tuple[TestPod, TestPod], watched: Watched, per_mille: int
) -> None:
    a, b = pods
    sizes = [300, 1_447, 1_448, 1_449, 65_536, 1_000_003, 3_000_017]
    # A short answer to a long message could be frames, after which that goes on.
    answers = [400 if size < 8192 else 8_209 for size in sizes]
    _nft(b, _LOSS % per_mille)
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    retransmitted = [-_retransmitted(pod) for pod in pods]
    with entered(a.netns):
        client = socket.create_connection((b.address, PORT))
    server, _ = listener.accept()
    with client, server:
        for size, answer_bytes in zip(sizes, answers, strict=True):
            sender = threading.Thread(target=client.sendall, args=(bytes(size),))
            sender.start()
            _receive(server, size)
            sender.join()
            server.sendall(bytes(answer_bytes))
            _receive(client, answer_bytes)
        time.sleep(0.3)
        told = {pod.name: _ss(pod) for pod in pods}
        retransmitted = [n + _retransmitted(pod) for n, pod in zip(retransmitted, pods, strict=True)]
    listener.close()
    with entered(b.netns):
        counters = subprocess.run(["nft", "list", "counters"], check=True, capture_output=True, text=True)
    dropped = int(counters.stdout.split("packets")[1].split()[0])
    time.sleep(0.05)
    tables = watched.stop()
    assert watched.loss == dict.fromkeys(watched.loss, 0)
    assert (dropped > 0) == (per_mille > 0)

    bursts = tables["bursts"]

    def moved(pod: TestPod, hook: Hook, direction: Direction) -> list[int]:
        rows = bursts[
            (bursts["pod"] == pod.name) & (bursts["hook"] == hook) & (bursts["direction"] == direction)
        ]
        # On arrival a last packet of a few bytes is kept apart: it could be a control frame.
        ends = rows["tail_end_seq"].where(rows["tail_end_seq"] > 0, rows["end_seq"])
        return [int(n) & 0xFFFFFFFF for n in ends - rows["first_seq"]]

    assert moved(a, Hook.ETH, Direction.TX) == sizes
    assert moved(b, Hook.ETH, Direction.RX) == sizes
    assert moved(b, Hook.ETH, Direction.TX) == moved(a, Hook.ETH, Direction.RX) == answers
    # ss counts the SYN among what was acknowledged to its sender.
    assert told[a.name]["bytes_acked"] - 1 == sum(sizes) == told[b.name]["bytes_received"]
    sent = told[a.name]["bytes_sent"] - told[a.name].get("bytes_retrans", 0)
    assert sent == sum(moved(a, Hook.ETH, Direction.TX))

    again = tables["retransmissions"]
    # An event is a packet, which the kernel may have made of two segments again.
    segments = -(-again["bytes"] // MSS)
    assert [int(segments[again["pod"] == pod.name].sum()) for pod in pods] == retransmitted
    assert int(again[again["pod"] == a.name]["bytes"].sum()) == told[a.name].get("bytes_retrans", 0)
    drops = tables["drops"]
    drops = drops[(drops["pod"] == b.name) & (drops["reason"] == "NETFILTER_DROP")]
    assert len(drops) == dropped
    assert all(0 < n <= 1460 for n in drops["payload_bytes"])
    # They are the connection's, by its identity.
    assert set(drops["connection"]) <= set(tables["connections"]["connection"])


def test_packets_of_a_connection_are_those_of_a_capture(
    pods: tuple[TestPod, TestPod], watched: Watched
) -> None:
    """Set-up packets one by one: the same flags in the same order, as far apart as in the capture."""
    a, b = pods
    capture = Capture(a)
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    for _ in range(20):
        with entered(a.netns):
            client = socket.create_connection((b.address, PORT))
        accepted, _ = listener.accept()
        client.shutdown(socket.SHUT_WR)
        accepted.recv(1)
        accepted.close()
        client.recv(1)
        client.close()
    listener.close()
    time.sleep(0.05)
    packets: Any = watched.stop()["packets"]
    seen = packets[(packets["pod"] == a.name) & (packets["kind"] == "setup")]
    truth = [p for p in capture.stop() if p.flags & 7]  # FIN, SYN, RST
    assert list(seen["tcp_flags"]) == [p.flags for p in truth]
    offsets = [p.time_ns - int(ts_ns) for p, ts_ns in zip(truth, seen["ts_ns"], strict=True)]
    assert _p99([abs(offset - sorted(offsets)[len(offsets) // 2]) for offset in offsets]) <= P99_ERROR_NS


def test_messages_begin_and_end_as_in_a_capture(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    """Packets amid a message have the time that TCP has (ebpf/sender.c), its ends the clock's."""
    a, b = pods
    # More than a window holds: many calls of tcp_write_xmit, many packets in each.
    messages, size = 29, 487_001
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    with entered(a.netns):
        client = socket.create_connection((b.address, PORT))
    server, _ = listener.accept()
    captures = [Capture(pod) for pod in pods]
    had_ns = []
    with client, server:
        for _ in range(messages):
            sender = threading.Thread(target=client.sendall, args=(b"u" * size,))
            sender.start()
            _receive(server, size)
            had_ns.append(time.monotonic_ns())
            sender.join()
            server.sendall(bytes(8_209))  # less could be frames, after which the message goes on
            _receive(client, 8_209)
    listener.close()
    time.sleep(0.05)
    tables = watched.stop()
    assert watched.loss == dict.fromkeys(watched.loss, 0)
    bursts = tables["bursts"]
    for pod, capture, direction in zip(pods, captures, (Direction.TX, Direction.RX), strict=True):
        sent = [p for p in capture.stop() if p.source[0] == a.address and p.payload_bytes]
        begins, ends_at = {}, {}  # by place in the stream; what was sent again came later
        for packet in sent:
            at = (packet.seq - sent[0].seq) % (1 << 32)
            begins.setdefault(at, packet.time_ns)
            ends_at.setdefault(at + packet.payload_bytes, packet.time_ns)
        places = range(0, messages * size, size)
        truth = [ns for start in places for ns in (begins[start], ends_at[start + size])]
        seen = bursts[
            (bursts["pod"] == pod.name) & (bursts["hook"] == Hook.ETH) & (bursts["direction"] == direction)
        ]
        # A last packet of a few bytes is kept apart on arrival.
        ends = seen["tail_ns"].where(seen["tail_ns"] > 0, seen["last_ns"])
        edges = [int(ns) for pair in zip(seen["first_ns"], ends, strict=True) for ns in pair]
        assert len(edges) == len(truth)
        offsets = [t - e for t, e in zip(truth, edges, strict=True)]
        assert _p99([abs(offset - sorted(offsets)[len(offsets) // 2]) for offset in offsets]) <= P99_ERROR_NS
    reads = bursts[
        (bursts["pod"] == b.name) & (bursts["hook"] == Hook.SOCK) & (bursts["direction"] == Direction.RX)
    ]
    ends = reads["tail_ns"].where(reads["tail_ns"] > 0, reads["last_ns"])
    late_ns = [abs(had - int(end_ns)) for had, end_ns in zip(had_ns, ends, strict=True)]
    assert _p99(late_ns) <= 10 * P99_ERROR_NS


def test_a_retransmission_knows_when_its_bytes_were_first_sent(
    pods: tuple[TestPod, TestPod], watched: Watched
) -> None:
    a, b = pods
    _nft(b, _LOSS % 20)
    capture = Capture(a)
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    with entered(a.netns):
        client = socket.create_connection((b.address, PORT))
    server, _ = listener.accept()
    sender = threading.Thread(target=client.sendall, args=(bytes(4_000_037),))
    sender.start()
    _receive(server, 4_000_037)
    sender.join()
    for one in (client, server, listener):
        one.close()
    offset_ns = time.time_ns() - time.monotonic_ns()
    time.sleep(0.05)
    again = watched.stop()["retransmissions"]
    first_ns: dict[int, int] = {}
    for packet in capture.stop():
        if packet.source[0] == a.address and packet.payload_bytes:
            first_ns.setdefault(packet.seq, packet.time_ns - offset_ns)
    again = again[again["pod"] == a.name]
    known = again[again["seq"].isin(first_ns)]
    assert len(known) > 20
    apart_ns = [
        abs(first_ns[seq] - since) for seq, since in zip(known["seq"], known["first_sent_ns"], strict=True)
    ]
    assert _p99(apart_ns) < 1_000_000  # what TCP sends in one go has one time


def test_a_flood_of_connections_loses_no_event(pods: tuple[TestPod, TestPod]) -> None:
    """As many short connections as this machine opens: each has its events, and no ring was found full."""
    found = measure_connections(pods, 2.0, rate=12_000)
    print(f"{found.rate:.0f} connections a second, {found.events} events")
    assert found.opened == found.accepted > 1000
    assert found.seen["client_established"] == found.seen["server_established"] == found.opened
    assert found.seen["syn"] == found.opened
    assert found.loss["ring_buffer_full"] == found.loss["map_full"] == found.loss["unknown_pod"] == 0
