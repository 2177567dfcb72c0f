"""A recorded run, analysed again: the same bytes, and what anyone can read off its events by hand.

The expectations below were derived from the raw tables alone, not from the analysis: `bursts`
on eth0 (hook 1) with the sender's and the receiver's first and last byte, set-up packets
in `packets`, and the server's log. All times are CLOCK_MONOTONIC nanoseconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import Ledger
from analysis.load import load_analysed
from analysis.report.report import build_report, write_report
from ztprobe.cli.entry import ztprobe
from ztprobe.rundir.store import dump_json, load_run

RECORDED = Path(__file__).parents[1] / "data" / "net2-sec3"
GOLDEN = RECORDED / "report.json"
RECONNECT = RECORDED.with_name("net2-sec3-reconnect")
NARROW = RECORDED.with_name("net5-sec0")


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return build_ledger(load_run(RECORDED))


@pytest.fixture(scope="module")
def baseline() -> Ledger:
    return build_ledger(load_run(RECORDED / "baseline"))


def fresh_report(run: Path) -> bytes:
    analysed = load_analysed(run)
    return dump_json(build_report(analysed.run, analysed.ledger, analysed.baseline))


@pytest.mark.parametrize("run", [RECORDED, RECONNECT], ids=lambda run: run.name)
def test_a_recorded_run_gives_its_golden_bytes(run: Path) -> None:
    assert fresh_report(run) == (run / "report.json").read_bytes(), "see tests/data/README.md"


def test_another_process_with_another_hash_seed_gives_them_too(tmp_path: Path) -> None:
    """Nothing may hang on the order of a set, the locale or the time zone."""
    environment = os.environ | {"PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    command = [sys.executable, "-m", "ztprobe", "report", str(RECORDED), "--out", str(tmp_path), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    assert done.stdout == GOLDEN.read_bytes() == (tmp_path / "report.json").read_bytes()


def test_figures_and_page_are_the_same_bytes_too(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(RECORDED, out=tmp_path / name)
    first = {path.relative_to(tmp_path / "one"): path for path in (tmp_path / "one").rglob("*.*")}
    assert {str(name) for name in first} >= {"report.json", "report.html", "figures/rounds.svg"}
    for name, path in first.items():
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_out_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    """Analysing a run that cannot be written to works with --out, and touches nothing of it."""
    run = tmp_path / "run"
    shutil.copytree(RECORDED, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    run.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        done = CliRunner().invoke(ztprobe, ["report", str(run), "--out", str(tmp_path / "out")])
        assert done.exit_code == 0, done.output
    finally:
        run.chmod(stat.S_IRWXU)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert (tmp_path / "out" / "report.json").read_bytes() == GOLDEN.read_bytes()


def test_out_takes_one_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(ztprobe, ["report", str(RECORDED), str(RECORDED), "--out", str(tmp_path / "x")])
    assert done.exit_code != 0 and not (tmp_path / "x").exists()


@pytest.mark.parametrize("run", [RECORDED, RECONNECT, NARROW], ids=lambda run: run.name)
def test_a_recorded_run_is_small_and_says_nothing_of_the_machine(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 480_000
    for path in files:
        content = path.read_bytes()
        for telling in (b"/home/", b"/root", b"/tmp/", b"/work/", b"hostname"):
            assert telling not in content, path


# --- read off the raw events by hand -----------------------------------------------------------------

# rounds.jsonl: round_end minus round_start
DURATIONS_NS = {
    1: 19868837552,
    2: 13024750323,
    3: 10116466684,
    4: 8541820227,
    5: 7245141413,
    6: 6715739195,
    7: 5819583880,
    8: 5167131593,
}
BASELINE_DURATIONS_NS = {
    1: 1138338292,
    2: 912590063,
    3: 830526919,
    4: 814389288,
    5: 1299551609,
    6: 817176951,
    7: 822262518,
    8: 1027018803,
}

# update_received: client 1's comes last in every round, by 0.21 s (round 8) to 11 s (round 1).
CRITICAL = dict.fromkeys(range(1, 9), "fl-client-1")
# Without delay it is a close race that both win: the baseline's update_received lines.
BASELINE_CRITICAL = {n: f"fl-client-{last}" for n, last in enumerate((0, 1, 1, 0, 1, 0, 0, 0), 1)}

# eth0, client 1's connection (port 53664): first byte at the receiver minus first byte at the sender,
# model down (server TX -> client RX) plus update up (client TX -> server RX).
PROPAGATION_NS = {
    1: (17025367699710 - 17025269623556) + (17035768347776 - 17035672462758),
    2: (17045212537757 - 17045150983703) + (17051448771512 - 17051365841452),
    3: (17058224418735 - 17058155089391) + (17063437493388 - 17063332180795),
    4: (17068386685991 - 17068271544272) + (17073099079288 - 17073005238693),
    5: (17076897046167 - 17076811869994) + (17081005697754 - 17080909871849),
    6: (17084150199016 - 17084058238545) + (17088105001381 - 17088017972128),
    7: (17090839960250 - 17090773173414) + (17094263448434 - 17094191318293),
    8: (17096673810146 - 17096593395112) + (17099524976959 - 17099437000559),
}

# The other run, with a new connection per client and round; client 0's is the last update of each.
# At its eth0: SYN and SYN-ACK, ClientHello (260 bytes) and the flight that answers ServerHello (646 or 645).
RECONNECT_DURATIONS_NS = {1: 8173680206, 2: 13949747523, 3: 12648866584}
RECONNECT_TCP_NS = {
    1: 17115541457693 - 17115378130386,
    2: 17128584566853 - 17128400116816,
    3: 17140865089378 - 17140688080144,
}
RECONNECT_TLS_NS = {
    1: 17115678607494 - 17115541562775,
    2: 17128686634774 - 17128584704388,
    3: 17141066053527 - 17140865237043,
}
# The model comes on the old connection, the update leaves on the new one.
RECONNECT_PROPAGATION_NS = {
    1: (17109932995512 - 17109824342575) + (17115970042024 - 17115885152662),
    2: (17118076821573 - 17118019655930) + (17128935116278 - 17128885853279),
    3: (17132007644277 - 17131943963908) + (17141309989340 - 17141214842199),
}


def test_durations_are_the_servers_own(ledger: Ledger, baseline: Ledger) -> None:
    assert {one.round: one.duration_ns for one in ledger.rounds} == DURATIONS_NS
    assert {one.round: one.duration_ns for one in baseline.rounds} == BASELINE_DURATIONS_NS


def test_components_and_residual_add_up_exactly(ledger: Ledger, baseline: Ledger) -> None:
    for one in (*ledger.rounds, *baseline.rounds):
        assert sum(one.components_ns.values()) + one.residual_ns == one.duration_ns
        assert min(one.components_ns.values()) >= 0 and one.residual_ns >= 0
        # No event was lost, and every edge of these rounds was seen.
        assert one.residual_ns < 0.05 * one.duration_ns
        assert (one.lost_events, one.coverage, one.uncertainty_ns) == (0, 1.0, 0)


def test_critical_clients(ledger: Ledger, baseline: Ledger) -> None:
    assert {one.round: one.critical_client for one in ledger.rounds} == CRITICAL
    assert {one.round: one.critical_client for one in baseline.rounds} == BASELINE_CRITICAL
    assert not any(one.tie for one in ledger.rounds)


def test_propagation(ledger: Ledger) -> None:
    assert {one.round: one.components_ns["propagation"] for one in ledger.rounds} == PROPAGATION_NS
    # and that is what 80 ± 20 ms twice can be
    assert all(80e6 < value < 240e6 for value in PROPAGATION_NS.values())


def test_the_baseline_has_no_way_to_speak_of(baseline: Ledger) -> None:
    # Two veth ends on one machine: the largest first-byte delays of a round are 38 µs + 23 µs.
    assert all(one.components_ns["propagation"] < 100_000 for one in baseline.rounds)
    # No sidecar, so nothing to charge one with.
    assert all(one.components_ns["proxy"] == 0 for one in baseline.rounds)


def test_one_exchange_a_round_and_no_handshake_inside(ledger: Ledger, baseline: Ledger) -> None:
    for one in (*ledger.rounds, *baseline.rounds):
        # one 4.8 MB burst down and one up for each client and round at eth0
        assert one.exchanges == 1.0
        # the packets table has no SYN after round 1's start
        assert sum(client.syn_count for client in one.clients) == 0
        for name in ("dns", "tcp_handshake", "tls_handshake", "http2_setup", "policy_drop"):
            assert one.components_ns[name] == 0


def test_connections_were_set_up_once(ledger: Ledger, baseline: Ledger) -> None:
    setup = {one.client: one for one in ledger.setup}
    assert set(setup) == {"fl-client-0", "fl-client-1"}
    # At each client's eth0, milliseconds before round 1's start: one SYN, and its SYN-ACK.
    #   client 0: 642.059136 and 465.777823; client 1: 642.500071 and 496.355784
    assert setup["fl-client-0"].components_ns["tcp_handshake"] == pytest.approx(176.281313e6, abs=2)
    assert setup["fl-client-1"].components_ns["tcp_handshake"] == pytest.approx(146.144287e6, abs=2)
    # ClientHello (260 bytes, record 22) and the flight that answers ServerHello (643 and 641 bytes):
    #   client 0: 465.611931 and 283.668118; client 1: 496.179587 and 331.413972
    assert setup["fl-client-0"].components_ns["tls_handshake"] == pytest.approx(181.943813e6, abs=2)
    assert setup["fl-client-1"].components_ns["tls_handshake"] == pytest.approx(164.765615e6, abs=2)
    for one in setup.values():
        # That flight's first encrypted record has 457 bytes: a Finished alone has 58 to 69.
        assert (one.tls_version, one.mutual, one.resumed) == ("1.3", "yes", False)
        assert one.syn_retransmissions == 0
        assert one.served_rounds == 8
        assert sum(one.components_ns.values()) + one.residual_ns == one.duration_ns
    assert [(one.tls_version, one.mutual) for one in baseline.setup] == [(None, None)] * 2


def test_training_time_lies_between_the_sidecars_last_and_first_bytes(ledger: Ledger) -> None:
    # Round 1, client 1, loopback: the sidecar's last byte to the application 9480.161639 ms after the
    # round's start, the application's first byte to the sidecar 10413.201967 ms after it.
    assert ledger.rounds[0].components_ns["compute"] == pytest.approx(933.040328e6, abs=2)
    # Round 2: 5358.246126 and 6237.380200 ms.
    assert ledger.rounds[1].components_ns["compute"] == pytest.approx(879.134074e6, abs=2)


def test_handshakes_are_on_every_rounds_path_when_clients_reconnect() -> None:
    ledger = build_ledger(load_run(RECONNECT))
    assert {one.round: one.duration_ns for one in ledger.rounds} == RECONNECT_DURATIONS_NS
    assert {one.critical_client for one in ledger.rounds} == {"fl-client-0"}
    for one in ledger.rounds:
        assert one.components_ns["tcp_handshake"] == RECONNECT_TCP_NS[one.round]
        assert one.components_ns["tls_handshake"] == RECONNECT_TLS_NS[one.round]
        assert one.components_ns["propagation"] == RECONNECT_PROPAGATION_NS[one.round]
        assert sum(one.components_ns.values()) + one.residual_ns == one.duration_ns
        # one SYN a client
        assert [client.syn_count for client in one.clients] == [1, 1]


@pytest.mark.parametrize(
    "run", [RECORDED, RECORDED / "baseline", RECONNECT, NARROW], ids=lambda run: run.name
)
def test_what_was_declared_does_not_change_the_ledger(run: Path) -> None:
    """Pods that somebody else deployed have no profile, no level and no experiment."""
    whole = load_run(run)
    meta = {
        key: value for key, value in whole.meta.items() if key not in ("emulation", "experiment", "options")
    }
    assert build_ledger(dataclasses.replace(whole, meta=meta)) == build_ledger(whole)


@pytest.mark.parametrize("loopback_too", [False, True], ids=["wire", "loopback-too"])
def test_reused_ports_are_other_connections(loopback_too: bool) -> None:
    """Every connection of a client from one and the same port: a SYN with another number tells them apart."""
    run = load_run(RECONNECT)
    events = dict(run.events)
    port_of = {"fl-client-0": 40_000, "fl-client-1": 40_001}
    address_of = {pod["name"]: pod["address"] for pod in run.meta["pods"]}
    name_of = {address: name for name, address in address_of.items()}
    for name, ends in (("connections", ("local", "remote")), ("drops", ("source", "target"))):
        table = events[name] = events[name].copy()
        for end in ends:
            port = f"{end}_port"
            client = table[end].map(name_of).map(port_of)
            table[port] = table[port].where(client.isna() | (table[port] == 9), client).astype("int64")
            if loopback_too and name == "connections":
                lo = table[end].str.startswith("127.") & (table[port] > 20_000)
                table[port] = table[port].where(~lo, 33_000)
    merged = dataclasses.replace(run, events=events)
    # Of each client, three connections or more from one port.
    assert events["connections"].groupby(["pod", "local", "local_port", "remote_port"]).size().max() >= 3
    assert build_ledger(merged) == build_ledger(run)


def test_a_full_queue_is_told_by_what_was_dropped_and_by_the_round_trips() -> None:
    """10 Mbit/s at every pod: tbf drops what its queue of 100 ms cannot hold, and that stalls nothing."""
    run = load_run(NARROW)
    drops = run.events["drops"]
    refused = drops[(drops["reason"] == "QDISC_DROP") & (drops["protocol"] == "tcp")]
    # Where in the kernel, at which device, on the way out, with whole headers and 1448 bytes of payload each.
    assert set(refused["location"]) == {"__dev_queue_xmit"} and set(refused["direction"]) == {"tx"}
    assert set(refused.groupby("pod")["ifindex"].nunique()) == {1}
    assert set(refused["payload_bytes"]) == {1448}
    assert set(refused["connection"]) <= set(run.events["connections"]["connection"])
    copies = run.events["retransmissions"]
    assert copies["rtt_excess_us"].between(20_000, 110_000).mean() > 0.9
    ledger = build_ledger(run)
    for one in ledger.rounds:
        # Two models share the server's interface: 4.8 MB take 4.01 s at that rate, and so does the update.
        transmission_ns, rows = one.components_ns["transmission"], one.sub_rows_ns["transmission"]
        assert transmission_ns == pytest.approx(3 * 4.01e9, rel=0.02)
        assert "congestion_window" not in rows and "jitter" not in rows
        assert rows["shared_egress"] == pytest.approx(4.01e9, rel=0.12)
        assert one.components_ns["retransmission"] == 0
        assert sum(client.retransmissions for client in one.clients) > 10


def test_the_report_is_plain_and_whole() -> None:
    report = json.loads(GOLDEN.read_text())
    assert report["coverage"] == 1.0 and report["loss_log"] == [] and set(report["loss"].values()) == {0}
    assert report["rounds_counted"] == 7 and report["rounds_withheld"] == 0
    assert report["overhead"]["duration"]["ci95"] is not None
    # mean of rounds 2..8 against the baseline's, from the two lists above
    mean = sum(DURATIONS_NS[n] - BASELINE_DURATIONS_NS[n] for n in range(2, 9)) / 7
    assert report["overhead"]["duration"]["delta_s"] == pytest.approx(mean / 1e9, abs=1e-9)
