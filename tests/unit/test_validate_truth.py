"""The truth that captures hold, on packets that were put there by hand."""

from __future__ import annotations

import copy
import dataclasses
import struct
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapWriter

from tests.unit.recorded_run import recorded
from ztprobe.errors import WorkloadError
from ztprobe.validate.comparison import RunEvidence
from ztprobe.validate.observe import truth
from ztprobe.validate.observe.capture import ACK, SYN, CapturedPacket, read_pcap

MS = 1_000_000
PORT = 50_443
PORTS = {PORT, 50_444}
CLIENT, SERVER, DNS = "10.244.0.3", "10.244.0.2", "10.244.0.9"
MAC = "02:00:00:00:00:01"


def tcp(
    at_ms: float,
    *,
    up: bool = True,
    port: int = 40_000,
    seq: int = 0,
    size: int = 0,
    flags: int = ACK,
    head: bytes = b"",
    ack: int = 0,
    window: int = 0xFFFF,
) -> CapturedPacket:
    ends = (CLIENT, SERVER, port, PORT) if up else (SERVER, CLIENT, PORT, port)
    return CapturedPacket(round(at_ms * MS), *ends, False, seq, ack, flags, window, size, head)


def dns(at_ms: float, ident: int, *, up: bool = True, port: int = 5353) -> CapturedPacket:
    head = struct.pack(">H", ident) + bytes(10)
    ends = (CLIENT, DNS, port, 53) if up else (DNS, CLIENT, 53, port)
    return CapturedPacket(round(at_ms * MS), *ends, True, 0, 0, 0, 0, len(head), head)


def ms(*intervals: tuple[float, float]) -> list[tuple[int, int]]:
    return [(round(a * MS), round(b * MS)) for a, b in intervals]


def test_handshake_runs_from_the_first_syn_to_the_answer() -> None:
    packets = [
        tcp(1, flags=SYN),
        tcp(3, flags=SYN, port=40_001),
        tcp(1001, flags=SYN),
        tcp(1002, up=False, flags=SYN | ACK),
        tcp(1003, up=False, flags=SYN | ACK, port=40_002),  # nobody asked
    ]
    assert truth.handshakes(packets, PORTS) == ms((1, 1002))
    assert truth.handshakes(packets, {PORT + 1}) == []


def test_the_server_s_ports_are_the_run_s() -> None:
    run = recorded()
    assert {pod["port"] for pod in run.meta["topology"]["connections"]} == {50_051}
    meta = copy.deepcopy(dict(run.meta))
    for one in meta["topology"]["endpoints"]:
        one["port"] += 1
    for found, port in ((run, 50_051), (dataclasses.replace(run, meta=meta), 50_052)):
        evidence = RunEvidence(run=found, packets={}, notes=(), target="fl-client-1", sizes={})
        assert evidence.server_ports == {port}


def test_tls_handshake_ends_with_the_clients_next_flight() -> None:
    hello = b"\x16\x03\x01"
    packets = [
        tcp(1, flags=SYN),
        tcp(2, size=517, head=hello),
        tcp(2.5, size=30, head=hello),  # a ClientHello may span segments
        tcp(9, up=False, size=1400, head=b"\x16\x03\x03"),
        tcp(10, size=2000, head=b"\x14\x03\x03"),
    ]
    assert truth.tls_handshakes(packets, PORTS) == ms((2, 10))
    assert truth.tls_handshakes(packets[:4], PORTS) == []
    plain = [tcp(1, flags=SYN), tcp(2, size=24, head=b"PRI"), tcp(3, up=False, size=30, head=b"\x00\x00")]
    assert truth.tls_handshakes(plain, PORTS) == []


def test_dns_waits_match_by_port_and_id() -> None:
    packets = [dns(1, 7), dns(2, 8), dns(4, 8, up=False), dns(6, 7, up=False), dns(7, 9)]
    assert truth.dns_waits(packets) == ms((2, 4), (1, 6))


def test_blocked_questions_count_from_the_first_to_the_one_that_was_answered() -> None:
    packets = [dns(1, 7), dns(5001, 7), dns(10_001, 7), dns(10_002, 7, up=False)]
    assert truth.dns_blocks(packets) == ms((1, 10_001))
    assert truth.dns_blocks([dns(1, 7), dns(2, 7, up=False)]) == []
    assert truth.dns_blocks([dns(1, 7)]) == []


def test_policy_block_ends_with_the_sending_of_the_syn_that_arrived() -> None:
    client = [
        tcp(1, flags=SYN),
        tcp(1001, flags=SYN),
        tcp(2001, flags=SYN),
        tcp(2041, up=False, flags=SYN | ACK),
    ]
    assert truth.policy_blocks(client, [tcp(2021, flags=SYN)], PORTS) == ms((1, 2001))
    assert truth.policy_blocks(client[:1], [tcp(21, flags=SYN)], PORTS) == []
    assert truth.policy_blocks(client, [], PORTS) == []


def stream(first_ms: float, count: int, step_ms: float, *, start: int = 1000) -> list[CapturedPacket]:
    wrap = 1 << 32
    return [tcp(first_ms + i * step_ms, seq=(start + 1448 * i) % wrap, size=1448) for i in range(count)]


@pytest.mark.parametrize("start", [1000, (1 << 32) - 2000], ids=["plain", "wrapping"])
def test_link_knows_the_first_delay_and_the_transmission(start: int) -> None:
    sent, arrived = stream(0, 5, 1, start=start), stream(20, 5, 1, start=start)
    again = tcp(40, seq=arrived[1].seq, size=1448)  # brings nothing new
    link = truth.Link(sent, [*arrived, again], CLIENT, SERVER)
    assert link.first_delay == ms((0, 20))[0]
    assert link.transmission == ms((20, 24))[0]
    assert truth.Link([], [], CLIENT, SERVER).first_delay is None
    assert truth.Link([], [], CLIENT, SERVER).transmission is None


def test_a_hole_is_open_from_when_the_segment_should_have_come() -> None:
    sent, arrived = stream(0, 5, 1), stream(20, 5, 1)
    repair = tcp(45, seq=sent[2].seq, size=1448)
    lost = [p for p in arrived if p.seq != repair.seq]
    came = tcp(65, seq=repair.seq, size=1448)
    link = truth.Link([*sent, repair], [*lost, came], CLIENT, SERVER)
    assert truth.holes(link) == ms((22, 65))


def test_a_needless_retransmission_leaves_no_hole() -> None:
    sent, arrived = stream(0, 5, 1), stream(20, 5, 1)
    twice = tcp(45, seq=sent[2].seq, size=1448)
    link = truth.Link([*sent, twice], [*arrived, tcp(65, seq=twice.seq, size=1448)], CLIENT, SERVER)
    assert truth.holes(link) == []


def test_only_pauses_that_an_acknowledgement_ended_are_the_congestion_windows() -> None:
    sent = [tcp(0, seq=0, size=1000), tcp(10, seq=1000, size=1000), tcp(50, seq=2000, size=1000)]
    # The second follows the acknowledgement at once, the third comes when the sender had something again.
    acks = [tcp(9.9, up=False, ack=1000), tcp(20, up=False, ack=2000)]
    assert truth.Link([*sent, *acks], [], CLIENT, SERVER).ack_clocked == ms((0, 10))


@pytest.mark.parametrize("seq", [3000, 1000], ids=["new", "again"])
def test_what_a_timer_sends_ends_no_wait_for_an_acknowledgement(seq: int) -> None:
    sent = [tcp(0, seq=0, size=1000), tcp(40, seq=1000, size=1000), tcp(40.1, seq=2000, size=1000)]
    probe, after = tcp(120, seq=seq, size=1000), tcp(340, seq=4000, size=1000)
    acks = [tcp(39.9, up=False, ack=1000), tcp(339.9, up=False, ack=3000)]
    link = truth.Link([*sent, probe, after, *acks], [], CLIENT, SERVER)
    assert link.ack_clocked == [*ms((0, 40)), *ms((40.1, 340))]


def test_a_full_receive_window_is_not_the_congestion_windows() -> None:
    sent = [tcp(0, seq=0, size=1000), tcp(10, seq=1000, size=1000)]
    acks = [tcp(-1, up=False, ack=0, window=1000), tcp(9.9, up=False, ack=1000, window=1000)]
    assert truth.Link([*sent, *acks], [], CLIENT, SERVER, window_scale=0).ack_clocked == []
    assert truth.Link([*sent, *acks], [], CLIENT, SERVER, window_scale=4).ack_clocked == ms((0, 10))


def test_silence_lies_between_two_packets_that_carry_something_new() -> None:
    sent = stream(0, 3, 1)
    probe = tcp(60, seq=sent[2].seq, size=1448)
    after = tcp(103, seq=sent[2].end_seq, size=1448)
    link = truth.Link([*sent, probe, after], [], CLIENT, SERVER)
    assert link.silence(50 * MS) == ms((2, 103))[0]
    assert link.silence(70 * MS) == ms((2, 103))[0]
    assert link.silence(-1) is None and link.silence(200 * MS) is None


def test_a_window_is_closed_from_the_last_segment_that_fits() -> None:
    sent = [tcp(0, seq=0, size=1000), tcp(1, seq=1000, size=1000), tcp(50, seq=2000, size=1000)]
    acks = [tcp(-1, up=False, ack=0, window=3000), tcp(20, up=False, ack=2000, window=0)]
    again = tcp(49, up=False, ack=2000, window=9000)
    link = truth.Link([*sent, *acks, again], [], CLIENT, SERVER, window_scale=0)
    assert link.closed_windows == ms((1, 50))
    # With an unknown scale nothing can be said.
    assert truth.Link([*sent, *acks, again], [], CLIENT, SERVER).closed_windows == []


def test_blocked_data_counts_until_the_sending_of_what_arrives() -> None:
    sent, arrived = stream(0, 6, 1), stream(20, 3, 1)
    tries = [tcp(300, seq=sent[3].seq, size=1448), tcp(800, seq=sent[3].seq, size=1448)]
    passed = [tcp(820, seq=sent[3].seq, size=1448)]
    later = [tcp(860, seq=sent[4].seq, size=1448)]
    link = truth.Link(
        [*sent, *tries, tcp(840, seq=sent[4].seq, size=1448)], arrived + passed + later, CLIENT, SERVER
    )
    assert truth.data_blocks(link) == ms((3, 800))
    assert truth.data_blocks(truth.Link(sent, stream(20, 6, 1), CLIENT, SERVER)) == []


def test_window_scale_is_read_from_the_options() -> None:
    options = b"\x02\x04\x05\xb4\x04\x02\x08\x0a" + bytes(8) + b"\x01\x03\x03\x07"
    assert truth.window_scale(tcp(0, flags=SYN, head=options)) == 7
    assert truth.window_scale(tcp(0, flags=SYN, head=b"\x02\x04\x05\xb4")) is None


def _pcap(path: Path, *frames: tuple[int, bytes]) -> None:
    with RawPcapWriter(str(path), linktype=1, endianness="<", nano=True) as writer:
        writer.write_header(None)
        for ts_ns, frame in frames:
            writer.write_packet(frame, sec=ts_ns // 10**9, usec=ts_ns % 10**9)


def _frame(payload: bytes, *, padding: int = 0) -> bytes:
    ends = IP(src=CLIENT, dst=SERVER) / TCP(sport=40_000, dport=50_051, seq=17, ack=23, flags="PA")
    return bytes(Ether(src=MAC, dst=MAC) / ends / payload) + bytes(padding)


def test_pcap_is_read_sorted_shifted_and_without_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    _pcap(path, (2_000_000_005, _frame(b"late", padding=6)), (1_000_000_003, _frame(b"")))
    first, second = read_pcap(path, offset_ns=-1_000_000_000)
    assert (first.ts_ns, second.ts_ns) == (3, 1_000_000_005)
    assert (second.payload_bytes, second.head[:4], second.seq, second.ack) == (4, b"late", 17, 23)
    assert (second.source, second.sport, second.target, second.dport) == (CLIENT, 40_000, SERVER, 50_051)


def test_a_truncated_record_is_left_out_and_another_format_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    _pcap(path, (5, _frame(b"x")))
    path.write_bytes(path.read_bytes()[:-60] + b"\x00")
    assert list(read_pcap(path, 0)) == []
    path.write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(20))
    with pytest.raises(WorkloadError, match="no capture with nanosecond"):
        list(read_pcap(path, 0))
