"""What is said of captures that others recorded, and which are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, wrpcap

from analysis.causes.capture import diagnose_capture
from ztprobe.cli.entry import main

CLIENT, SERVER, NODE = "10.0.0.1", "10.0.0.2", "10.0.0.9"


def written(path: Path, *packets: Packet) -> Path:
    with PcapNgWriter(str(path)) as writer:
        for number, packet in enumerate(packets):
            packet.time = 1000.0 + number / 10
            writer.write(packet)
    return path


def segment(flags: str, *, back: bool = False, ttl: int = 64, seq: int = 1, **more: int) -> Packet:
    source, target = (SERVER, CLIENT) if back else (CLIENT, SERVER)
    sport, dport = (50051, 4000) if back else (4000, 50051)
    tcp = TCP(sport=sport, dport=dport, flags=flags, seq=seq, **more)
    return Ether() / IP(src=source, dst=target, ttl=ttl) / tcp


OPEN = (segment("S"), segment("SA", back=True, ack=2), segment("A", seq=2, ack=2))
ASKED = Ether() / IP(src=CLIENT, dst=NODE) / UDP(sport=5000, dport=53) / DNS(id=7, qd=DNSQR(qname="x.y"))
UNKNOWN = (
    Ether()
    / IP(src=NODE, dst=CLIENT)
    / UDP(sport=53, dport=5000)
    / DNS(id=7, qr=1, rcode=3, qd=DNSQR(qname="x.y"))
)
ALERT = Raw(bytes([21, 3, 3, 0, 2, 2, 45]))


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        (OPEN, []),
        ((segment("S"), segment("S")), ["application.peer_unreachable"]),
        ((segment("S"), segment("RA", back=True)), ["application.nothing_listens"]),
        (
            (
                *OPEN,
                segment("S", seq=9) / b"",
                Ether()
                / IP(src=NODE, dst=CLIENT)
                / ICMP(type=3, code=13)
                / IP(src=CLIENT, dst=SERVER)
                / TCP(sport=4000, dport=50051),
            ),
            ["policy.rejected"],
        ),
        ((*OPEN, segment("PA", seq=2, ack=2) / ALERT), ["tls.expired_certificate"]),
        ((ASKED, UNKNOWN), ["application.no_such_name"]),
        (
            (*OPEN, *(segment("PA", seq=2, ack=2) / Raw(b"x" * 500) for _ in range(5))),
            ["application.half_open"],
        ),
    ],
    ids=["healthy", "silence", "refused", "icmp", "alert", "name", "nothing-acknowledged"],
)
def test_what_packets_themselves_tell(
    tmp_path: Path, packets: tuple[Packet, ...], expected: list[str]
) -> None:
    found = diagnose_capture(written(tmp_path / "c.pcapng", *packets))
    assert [one["id"] for one in found["causes"]] == expected
    assert found["packets"] == len(packets)
    assert any("no policy is named" in one for one in found["cannot"])
    assert not any("olicy" in one["summary"] for one in found["causes"])


def test_the_command_prints_what_it_cannot_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "c.pcapng", segment("S"), segment("S"))
    assert main(["diagnose", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"{path}: 2 packets in 0.1 s, 1 TCP connections tried" in said
    assert "a capture cannot tell what processes did" in said
    assert main(["diagnose", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["causes"][0]["confidence"] < 0.6


def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = written(tmp_path / "whole.pcapng", *OPEN).read_bytes()
    files = {
        "cut": whole[:-10],
        # The interface description follows the section header's 28 bytes; its link type, two words.
        "other": whole[:36] + struct.pack("<H", 147) + whole[38:],
        "text": b"apiVersion: v1\nkind: Pod\n",
        "empty": b"",
    }
    wrpcap(str(tmp_path / "old"), list(OPEN))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, words in (
        ("cut", "is cut off"),
        ("other", "link type 147"),
        ("text", "is no pcapng file"),
        ("empty", "is no pcapng file"),
        ("old", "older format"),
    ):
        assert main(["diagnose", str(tmp_path / name)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"ztprobe: {tmp_path / name}: ")
        assert words in lines[0]
