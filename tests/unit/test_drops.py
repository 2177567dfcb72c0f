"""`ztprobe drops` on recorded runs: which packets, by which policy, and as a pcapng."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from scapy.layers.inet import IP, TCP
from scapy.utils import PcapNgReader

from analysis.results.drops import BURST_GAP_NS, dropped_packets, in_bursts
from analysis.results.drops_pcapng import write_pcapng
from analysis.results.drops_text import burst_lines
from tests.unit.recorded_run import recorded
from ztprobe.cli.entry import main, ztprobe
from ztprobe.rundir.store import Run, load_run

DATA = Path(__file__).parents[1] / "data"
POLICIES = Path(__file__).parents[2] / "manifests/components/network-policy/policies.yaml"


def _policies() -> list[dict[str, Any]]:
    documents = [one for one in yaml.safe_load_all(POLICIES.read_text()) if one]
    for one in documents:
        one["metadata"].setdefault("namespace", "fl")
    return documents


def _with_objects(objects: Any) -> Run:
    run = recorded()
    enforcement = run.meta["enforcement"]
    details = {**enforcement["details"], "objects": objects}
    return dataclasses.replace(run, meta={**run.meta, "enforcement": {**enforcement, "details": details}})


def _filtered(run: Run) -> list[Any]:
    return [one for one in dropped_packets(run) if one.reason == "NETFILTER_DROP"]


def test_what_the_filter_dropped_is_denied_by_the_policies_in_force() -> None:
    found = _filtered(_with_objects(_policies()))
    assert len(found) == 8
    assert {one.verdict for one in found} == {"denied"}
    by_whom = {(one.source, one.target, one.target_port): one.policies for one in found}
    # An outsider, whom no policy selects: only the server's own policies deny.
    assert by_whom["10.244.0.6", "fl-server", 50051] == (
        "NetworkPolicy fl/default-deny",
        "NetworkPolicy fl/fl-server-from-clients",
    )
    assert "NetworkPolicy fl/fl-client-to-server" in by_whom["fl-client-0", "fl-client-1", 50051]


def test_no_policy_is_named_for_any_other_reason() -> None:
    others = [one for one in dropped_packets(_with_objects(_policies())) if one.reason != "NETFILTER_DROP"]
    assert others
    assert not any(one.policies or one.verdict for one in others)


def test_no_policy_is_named_where_none_selects_either_end() -> None:
    found = _filtered(_with_objects([]))
    assert not any(one.policies for one in found)
    assert {one.explanation for one in found} == {
        ("by a packet filter, and no policy's: none selects either end",)
    }


def test_policies_that_allow_it_are_not_blamed() -> None:
    allow = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "all", "namespace": "fl"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]},
    }
    found = _filtered(_with_objects([*_policies(), allow]))
    assert {(one.verdict, one.policies) for one in found} == {("allowed", ())}


def test_a_reply_is_no_new_connection() -> None:
    run = _with_objects(_policies())
    drops = run.events["drops"].assign(tcp_flags=18)
    found = _filtered(dataclasses.replace(run, events={**run.events, "drops": drops}))
    assert not any(one.policies for one in found)
    assert {one.explanation for one in found} == {
        ("by a packet filter; no new connection, which is what policies are about",)
    }


def _with_datagram(run: Run, source: tuple[str, int], target: tuple[str, int], after_ns: int) -> Run:
    """The run with one more drop: a datagram, by the packet filter, a second after that time."""
    drops = run.events["drops"]
    one = drops[drops["protocol"] == "udp"].head(1)
    more = one.assign(
        ts_ns=after_ns + 1_000_000_000,
        reason="NETFILTER_DROP",
        source=source[0],
        source_port=source[1],
        target=target[0],
        target_port=target[1],
    )
    return dataclasses.replace(run, events={**run.events, "drops": pd.concat([drops, more])})


def test_an_answer_is_judged_by_who_asked() -> None:
    """The name service's answer opens nothing; what another end sends to the same port does."""
    run = _with_objects(_policies())
    answer = run.events["dns"][run.events["dns"]["direction"] == "rx"].iloc[0]
    client, service = (answer["local"], int(answer["local_port"])), (answer["remote"], 53)
    stranger = ("10.244.0.3", 53)

    def found(source: tuple[str, int], target: tuple[str, int]) -> Any:
        drops = dropped_packets(_with_datagram(run, source, target, int(answer["ts_ns"])))
        (one,) = [drop for drop in drops if drop.protocol == "udp" and drop.reason == "NETFILTER_DROP"]
        return one

    assert found(service, client).explanation == (
        "by a packet filter; no new connection, which is what policies are about",
    )
    assert not found(service, client).verdict
    assert found(stranger, client).verdict == "denied"
    # Asked again by the same port, after an answer: the asker's all the same, which the policies allow.
    assert found(client, service).verdict == "allowed"


def test_what_comes_after_the_last_round_is_no_round_s() -> None:
    run = recorded()
    start_ns, end_ns = (
        [event["time_monotonic_ns"] for event in run.rounds if event["event"] == name][-1]
        for name in ("round_start", "round_end")
    )
    last = len({event["round"] for event in run.rounds if event["event"] == "round_start"})
    one = run.events["drops"].head(1)
    for ts_ns, expected in ((start_ns - 1, last - 1), (start_ns, last), (end_ns, last), (end_ns + 1, None)):
        drops = one.assign(ts_ns=ts_ns)
        (found,) = dropped_packets(dataclasses.replace(run, events={**run.events, "drops": drops}))
        assert found.round == expected
    (line, *_) = burst_lines(in_bursts([found]))
    assert "after the rounds" in line
    # A run that ended within its last round has no time after it.
    unfinished = [event for event in run.rounds if event["event"] != "round_end" or event["round"] != last]
    (found,) = dropped_packets(
        dataclasses.replace(run, rounds=unfinished, events={**run.events, "drops": drops})
    )
    assert found.round == last


def test_without_policies_the_line_says_what_to_give() -> None:
    assert all("-f gives them" in one.explanation[0] for one in _filtered(recorded()))


def test_a_damaged_record_of_objects_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rounds.jsonl", "clients.jsonl"):
        (tmp_path / name).write_bytes((DATA / "net5-sec0" / name).read_bytes())
    (tmp_path / "events").mkdir()
    for path in (DATA / "net5-sec0" / "events").iterdir():
        (tmp_path / "events" / path.name).write_bytes(path.read_bytes())
    meta = json.loads((DATA / "net5-sec0" / "run.json").read_text())
    for damaged in (7, [7], [{"kind": "NetworkPolicy"}], ["x"], {"a": 1}):
        meta["enforcement"]["details"]["objects"] = damaged
        (tmp_path / "run.json").write_text(json.dumps(meta))
        assert main(["drops", str(tmp_path)]) == 4
        assert capsys.readouterr().err.splitlines() == [
            f"ztprobe: {tmp_path}: its record of the objects in force is damaged"
        ]


def test_bursts_hold_every_packet_once() -> None:
    run = load_run(DATA / "net5-sec0")
    packets = dropped_packets(run)
    bursts = in_bursts(packets)
    assert sum(burst.packets for burst in bursts) == len(packets) == len(run.events["drops"])
    assert sum(burst.payload_bytes for burst in bursts) == int(run.events["drops"]["payload_bytes"].sum())
    assert len(bursts) < len(packets) / 10
    assert [one.ts_ns for one in packets] == sorted(one.ts_ns for one in packets)


def test_a_pause_ends_a_burst() -> None:
    run = load_run(DATA / "net5-sec0")
    one = run.events["drops"][run.events["drops"]["reason"] == "QDISC_DROP"].head(1)
    for gap_ns, expected in ((BURST_GAP_NS, 1), (BURST_GAP_NS + 1, 2)):
        twice = pd.concat([one, one.assign(ts_ns=one["ts_ns"] + gap_ns)])
        bursts = in_bursts(dropped_packets(dataclasses.replace(run, events={**run.events, "drops": twice})))
        assert len(bursts) == expected


def test_lines_say_when_whom_and_where() -> None:
    run = load_run(DATA / "net5-sec0")
    last = [line for line in burst_lines(in_bursts(dropped_packets(run))) if "QDISC_DROP" in line][-1]
    assert last == (
        "08:18:13.070  round 3  fl-client-1 -> fl-server:50051 tcp [P.]  QDISC_DROP, 7 packets in 92.0 ms, "
        "10,136 bytes of payload  in fl-client-1, __dev_queue_xmit"
    )


def test_pcapng_holds_the_packets(tmp_path: Path) -> None:
    path = tmp_path / "drops.pcapng"
    done = CliRunner().invoke(ztprobe, ["drops", str(DATA / "net5-sec0"), "--pcap", str(path), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    packets = _read(path)
    table = load_run(DATA / "net5-sec0").events["drops"].sort_values("ts_ns", kind="stable")
    assert len(packets) == len(said) == len(table)
    assert [bytes(packet) for packet in packets] == table["head"].tolist()
    for packet, one in zip(packets, said, strict=True):
        assert packet[IP].sport == one["source_port"]
        assert abs(float(packet.time) - one["time_unix_ns"] / 1e9) < 2e-6
        assert packet.wirelen == packet[IP].len
        assert packet.sniffed_on == one["pod"]
        assert packet.comments[0].decode().startswith(one["reason"])


def test_pcapng_names_the_policy_in_a_comment(tmp_path: Path) -> None:
    one = _filtered(_with_objects(_policies()))[0]
    head = bytes(IP(src="10.244.0.6", dst="10.244.0.2") / TCP(dport=50051))
    path = tmp_path / "drops.pcapng"
    write_pcapng([dataclasses.replace(one, head=head)], path)
    (packet,) = _read(path)
    assert packet.comments == [
        b"NETFILTER_DROP: 10.244.0.6 -> fl-server",
        b"ingress isolated by NetworkPolicies fl/default-deny, fl/fl-server-from-clients, "
        b"without a rule that allows it",
    ]


def test_a_run_without_packet_bytes_leaves_no_pcapng(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "drops.pcapng"
    assert main(["drops", str(DATA / "net2-sec3"), "--pcap", str(path)]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not path.exists()


def _read(path: Path) -> list[Any]:
    with PcapNgReader(str(path)) as reader:
        return list(reader)


def test_options_take_what_the_run_has(capsys: pytest.CaptureFixture[str]) -> None:
    run = str(DATA / "net2-sec3")
    assert main(["drops", run, "--pod", "fl-client-1", "--reason", "NETFILTER_DROP"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 30 dropped packets"
    for option, value in (("--pod", "nobody"), ("--reason", "NOTHING")):
        assert main(["drops", run, option, value]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"ztprobe: {option} {value}: is none of this run's: ")
    assert main(["drops", str(DATA)]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_s_policies_explain_connections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--from", "fl/fl-client-0", "--to", "fl/fl-client-1", "--port", "50051/TCP"]
    for name in ("rounds.jsonl", "clients.jsonl", "events"):
        (tmp_path / name).symlink_to(DATA / "net5-sec0" / name)
    meta = json.loads((DATA / "net5-sec0" / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(meta))
    assert main(["policy", "explain", "--run", str(tmp_path), *asked]) == 2
    assert capsys.readouterr().err == (
        f"ztprobe: {tmp_path}: holds no policies; give those that were in force with -f\n"
    )
    assert main(["policy", "explain", "--run", str(tmp_path), "-f", str(POLICIES), "-n", "fl", *asked]) == 3
    meta["enforcement"]["details"]["objects"] = _policies()
    (tmp_path / "run.json").write_text(json.dumps(meta))
    assert main(["policy", "explain", "--run", str(tmp_path), *asked]) == 3
    assert "fl/fl-client-0 -> fl/fl-client-1 50051/TCP: denied" in capsys.readouterr().out
    assert main(["policy", "explain", *asked]) == 2
