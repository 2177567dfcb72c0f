"""Drops that are followed: records as named packets with policies, which lines when, tcpdump's filters."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from analysis.recorded import policy_pods, read_recorded
from analysis.results.drop_explanations import DropExplainer
from analysis.results.drops import flag_letters
from analysis.results.drops_live import Deployment, DropDecoder, DropLines, LiveDrop
from analysis.results.drops_text import burst_dict, burst_lines
from analysis.results.packet_filter import PacketFilter
from ztprobe.cli.entry import ztprobe
from ztprobe.errors import RunDirError, UsageError
from ztprobe.events.heads import address_bytes, packet_bytes
from ztprobe.events.layout import plain_structs
from ztprobe.pods.live_objects import objects_in_force, publish_objects
from ztprobe.policy.simulation import merged
from ztprobe.rundir import store
from ztprobe.rundir.store import load_run

DATA = Path(__file__).parents[1] / "data"
KIND, RECORD = plain_structs("drops.h")["drop_kind"], plain_structs("drops.h")["dropped"]
PODS = [
    {"name": "server", "namespace": "fl", "labels": {"app": "server"}, "address": "10.0.0.1"},
    {"name": "client", "namespace": "fl", "labels": {"app": "client"}, "address": "10.0.0.2"},
]
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "fl"}}
DENY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "deny", "namespace": "fl"},
    "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]},
}
REASONS = {7: "NETFILTER_DROP", 3: "NO_SOCKET"}


def kind(**values: Any) -> bytes:
    row = np.zeros(1, KIND)
    said = {
        "netns": 41,
        "reason": 7,
        "target_port": 50051,
        "ethertype": 0x0800,
        "protocol": 6,
        "tcp_flags": 2,
    }
    said |= {"source": "10.0.0.2", "target": "10.0.0.1", "direction": 1, "location": 99} | values
    for name, value in said.items():
        row[name] = np.void(address_bytes(value)) if isinstance(value, str) else value
    return row.tobytes()


def record(of: bytes, ts_ns: int, head: bytes = b"", payload_bytes: int = 0) -> np.ndarray:
    row = np.zeros(1, RECORD)
    row["kind"], row["head"] = np.void(of), np.void(head.ljust(128, b"\0"))
    row["ts_ns"], row["head_bytes"], row["payload_bytes"] = ts_ns, len(head), payload_bytes
    row["source_port"] = 4000
    return row


def decoder() -> DropDecoder:
    explainers = []
    for since_ns, objects in ((0, [NAMESPACE]), (1000, [NAMESPACE, DENY])):
        known = merged(read_recorded(objects, Path("/run")), policy_pods(PODS))
        explainers.append((since_ns, DropExplainer(known, unknown="unknown")))
    made = DropDecoder(KIND, REASONS, lambda address: f"function_{address}", 5_000)
    made.know(
        [
            Deployment(
                name="run",
                places={41: "server", 40: "node"},
                names={"10.0.0.1": "server", "10.0.0.2": "client"},
                explainers=explainers,
            )
        ]
    )
    return made


def test_a_record_is_a_packet_with_names_and_the_policy_in_force_then() -> None:
    head = bytes(IP(src="10.0.0.2", dst="10.0.0.1") / TCP(sport=4000, dport=50051, flags="S"))
    (early,) = decoder().records(record(kind(), 999, head))
    (late,) = decoder().records(record(kind(), 1001, head))
    assert (early.packet.source, early.packet.target, early.packet.pod) == ("client", "server", "server")
    assert (early.packet.reason, early.packet.location) == ("NETFILTER_DROP", "function_99")
    assert (early.packet.source_port, early.packet.target_port) == (4000, 50051)
    assert (early.packet.tcp_flags, early.packet.time_unix_ns) == ("S", 5_999)
    assert (early.packet.verdict, early.packet.policies) == ("not applicable", ())
    assert (late.packet.verdict, late.packet.policies) == ("denied", ("NetworkPolicy fl/deny",))


def test_no_policy_is_named_for_another_reason() -> None:
    (found,) = decoder().records(record(kind(reason=3), 2000))
    assert (found.packet.verdict, found.packet.policies, found.packet.explanation) == ("", (), ())


def test_what_is_counted_is_told_like_the_packet_before() -> None:
    known = decoder()
    head = bytes(IP() / TCP(dport=50051))
    list(known.records(record(kind(), 2000, head)))
    more = known.counted(kind(), 40, 400, 3000)
    assert more is not None
    assert (more.packets, more.is_counted, more.packet.head, more.last_ns) == (40, True, head, 3000)
    assert known.counted(kind(netns=9), 1, 1, 1) is None


def test_noise_and_strangers_are_classified() -> None:
    def only(**values: Any) -> Any:
        (found,) = decoder().records(record(kind(**values), 2000))
        return found.packet

    arp = only(ethertype=0x0806, protocol=0, tcp_flags=0, target_port=0, reason=3)
    assert (arp.protocol, arp.noise, arp.source) == ("arp", "arp", "client")
    group = only(protocol=17, target="224.0.0.251", target_port=5353, reason=3, tcp_flags=0)
    assert (group.noise, group.target) == ("group", "224.0.0.251")
    assert only(tcp_flags=16, reason=3).noise == "bare"
    assert only(tcp_flags=16).noise == ""  # a policy's drop is no noise
    assert only(ethertype=0x88CC, protocol=0, tcp_flags=0).protocol == "ethertype 0x88cc"
    assert only(ethertype=0x86DD, protocol=58, source="fe80::1", target="ff02::1", reason=3).noise == "group"
    assert list(decoder().records(record(kind(netns=7), 1))) == []


def drop(ts_ns: int, packets: int = 1, *, of: bytes | None = None) -> LiveDrop:
    (found,) = decoder().records(record(of or kind(), ts_ns, payload_bytes=10))
    if packets == 1:
        return found
    return LiveDrop(**{**vars(found), "packets": packets, "is_counted": True, "payload_bytes": 10 * packets})


MS = 1_000_000


def test_the_first_of_a_kind_at_once_and_bursts_whole() -> None:
    lines = DropLines()
    first = lines.take(drop(0))
    assert first is not None
    assert (first.packets, first.is_rest) == (1, False)
    assert lines.take(drop(5 * MS)) is None
    assert lines.take(drop(10 * MS, packets=400)) is None
    assert lines.take(drop(11 * MS, of=kind(target_port=1))) is not None  # of another kind
    assert lines.over(100 * MS) == []
    (rest,) = lines.over(130 * MS)
    assert (rest.packets, rest.payload_bytes, rest.is_rest, rest.last_ns) == (401, 4010, True, 10 * MS)
    assert lines.over(1000 * MS) == []
    assert lines.take(drop(1001 * MS)) is not None  # quiet meanwhile


def test_what_goes_on_is_told_every_second() -> None:
    lines, told = DropLines(), []
    for at in range(0, 10_000, 10):
        one = lines.take(drop(at * MS))
        told += ([one] if one else []) + lines.over(at * MS)
    told += lines.rest()
    assert sum(burst.packets for burst in told) == 1000
    assert len(told) < 20


def test_lines_for_people_and_programs() -> None:
    lines = DropLines()
    first = lines.take(drop(2000))
    lines.take(dataclasses.replace(drop(2000), packets=7, is_counted=True, payload_bytes=70, last_ns=3000))
    (rest,) = lines.rest()
    assert first is not None
    said = list(burst_lines([first]))
    assert said[0].endswith(
        "client -> server:50051 tcp [S]  NETFILTER_DROP, 10 bytes of payload  in server, function_99"
    )
    assert said[1].startswith("    ingress isolated by NetworkPolicy fl/deny")
    (more,) = burst_lines([rest])  # what it is has been said
    assert "NETFILTER_DROP, 7 more packets in " in more
    entry = burst_dict(rest)
    assert (entry["packets"], entry["more"], entry["policies"]) == (7, True, ["NetworkPolicy fl/deny"])
    assert entry["last_time_unix_ns"] == entry["time_unix_ns"] + 1000
    assert entry["round"] is None


def test_flags_as_tcpdump_writes_them() -> None:
    assert [flag_letters(flags) for flags in (2, 18, 16, 17, 4, 24)] == ["S", "S.", ".", "F.", "R", "P."]


def test_a_filter_in_tcpdumps_syntax() -> None:
    syn = bytes(IP(src="10.0.0.2", dst="10.0.0.1") / TCP(dport=50051, flags="S"))
    big = bytes(IP(src="10.0.0.2", dst="10.0.0.1", len=1200) / UDP(dport=53) / (b"x" * 80))
    six = bytes(IPv6(src="fe80::1", dst="fe80::2") / UDP(dport=53))
    assert PacketFilter("tcp dst port 50051 and src host 10.0.0.2").matches(syn)
    assert PacketFilter("tcp[tcpflags] & tcp-syn != 0").matches(syn)
    assert not PacketFilter("udp").matches(syn)
    assert PacketFilter("greater 1000").matches(big)  # as long as it was, not as was kept of it
    assert PacketFilter("ip6 and udp port 53").matches(six)
    assert not PacketFilter("udp").matches(b"")
    for wrong in ("tcp prot 1", "ether host 1:2:3:4:5:6", "((", "tcp\0", "x" * 20_000):
        with pytest.raises(UsageError, match=r"^--filter"):
            PacketFilter(wrong)


def test_a_packets_length_is_its_headers() -> None:
    assert packet_bytes(bytes(IP(len=1500) / UDP())) == 1500
    assert packet_bytes(bytes(IPv6(plen=100) / UDP())) == 140
    assert packet_bytes(b"\x45") == 1
    assert packet_bytes(b"") == 0


def test_the_filter_of_a_saved_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(DATA / "net2-sec3")
    drops = run.events["drops"].head(3).copy()
    packets = (IP(dst="10.0.0.1") / UDP(dport=53), IP(dst="10.0.0.1") / TCP(dport=50051))
    drops["head"] = [*(bytes(packet) for packet in packets), b""]
    events = {**run.events, "drops": drops}
    monkeypatch.setattr(store, "load_run", lambda _: dataclasses.replace(run, events=events))
    outcome = CliRunner().invoke(ztprobe, ["drops", "run", "--filter", "udp or icmp"])
    assert outcome.exit_code == 0
    assert outcome.stdout.splitlines()[-1] == (
        "1 of 3 dropped packets; 1 without known bytes, which --filter leaves out"
    )


@pytest.mark.parametrize("words", [["--follow"], ["--for", "3"], ["--selector", "a=b"], ["--run", "x"]])
def test_a_saved_run_is_not_followed(words: list[str]) -> None:
    outcome = CliRunner().invoke(ztprobe, ["drops", str(DATA / "net2-sec3"), *words])
    assert isinstance(outcome.exception, UsageError)
    assert words[0] in str(outcome.exception)


def test_objects_in_force_are_roots_alone_and_in_order(tmp_path: Path) -> None:
    assert objects_in_force(tmp_path) == []
    publish_objects(tmp_path, [NAMESPACE])
    publish_objects(tmp_path, [NAMESPACE, DENY])
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    first, second = objects_in_force(tmp_path)
    assert first.since_ns < second.since_ns
    assert [len(one.objects) for one in (first, second)] == [1, 2]
    for damaged in ("{", "[]", '{"since_ns": "x", "objects": []}', '{"since_ns": 1}'):
        file.write_text(damaged + "\n")
        with pytest.raises(RunDirError):
            objects_in_force(tmp_path)


def test_addresses_of_kinds_are_as_the_kernel_writes_them() -> None:
    assert np.frombuffer(kind(), KIND)[0]["source"].tobytes()[12:] == socket.inet_aton("10.0.0.2")
