"""A recorded run, analysed again: the same bytes, and what anyone can read off its events by hand.

The expectations below were derived from the raw tables alone, not from the analysis: `bursts`
on eth0 (hook 1) with the sender's and the receiver's first and last byte, set-up packets
in `packets`, and the server's log. All times are CLOCK_MONOTONIC nanoseconds.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from analysis.ledger import build_ledger
from analysis.load import load_analysed
from analysis.model import Ledger
from analysis.report import build_report, write_report
from ztprobe.cli.entry import ztprobe
from ztprobe.store import dump_json, load_run

RECORDED = Path(__file__).parents[1] / "data" / "net2-sec3"
GOLDEN = RECORDED / "report.json"


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return build_ledger(load_run(RECORDED))


@pytest.fixture(scope="module")
def baseline() -> Ledger:
    return build_ledger(load_run(RECORDED / "baseline"))


def fresh_report() -> bytes:
    analysed = load_analysed(RECORDED)
    return dump_json(build_report(analysed.run, analysed.ledger, analysed.baseline))


def test_the_recorded_run_gives_the_golden_bytes() -> None:
    assert fresh_report() == GOLDEN.read_bytes(), "see tests/data/README.md"


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


def test_the_recorded_run_is_small_and_says_nothing_of_the_machine() -> None:
    files = [path for path in RECORDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 350_000
    for path in files:
        content = path.read_bytes()
        for telling in (b"/home/", b"/root", b"/tmp/", b"/work/", b"hostname"):
            assert telling not in content, path


# --- read off the raw events by hand -----------------------------------------------------------------

# rounds.jsonl: round_end minus round_start
DURATIONS_NS = {1: 11522492106, 2: 9115833697, 3: 8925936325, 4: 7675394078, 5: 8283646421}
BASELINE_DURATIONS_NS = {1: 1600538279, 2: 1060818561, 3: 1076288272, 4: 965814533, 5: 1213167720}

# Both clients' updates arrive at the server's eth0 in every round; the later one is client 1's
# (round 1: its last byte 5932921067692, client 0's 2.3 s earlier), and update_received agrees.
CRITICAL = dict.fromkeys(range(1, 6), "fl-client-1")
# Without delay it is a close race that others win as well: the baseline's update_received lines.
BASELINE_CRITICAL = {1: "fl-client-1", 2: "fl-client-1", 3: "fl-client-0", 4: "fl-client-0", 5: "fl-client-1"}

# eth0, client 1's connection (port 45570): first byte at the receiver minus first byte at the sender,
# model down (server TX -> client RX) plus update up (client TX -> server RX).
PROPAGATION_NS = {
    1: (5921509490735 - 5921425926231) + (5924898542658 - 5924793866741),
    2: (5933020936895 - 5932941752150) + (5936364136219 - 5936273583240),
    3: (5942170172280 - 5942056181991) + (5946441339573 - 5946370779671),
    4: (5951049247771 - 5950982032954) + (5954613690115 - 5954519849470),
    5: (5958750945704 - 5958657030358) + (5963571027864 - 5963491144576),
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
    # The closest race of the run itself was round 5's, by 1.4 s.
    assert not any(one.tie for one in ledger.rounds)


def test_propagation(ledger: Ledger) -> None:
    assert {one.round: one.components_ns["propagation"] for one in ledger.rounds} == PROPAGATION_NS
    # and that is what 80 ± 20 ms twice can be
    assert all(80e6 < value < 240e6 for value in PROPAGATION_NS.values())


def test_the_baseline_has_no_way_to_speak_of(baseline: Ledger) -> None:
    # Two veth ends on one machine: the largest first-byte delay of its ten messages is 44 µs + 32 µs.
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
    #   client 0: 656.058010 and 467.670987; client 1: 661.129216 and 512.570131
    assert setup["fl-client-0"].components_ns["tcp_handshake"] == pytest.approx(188.387023e6, abs=2)
    assert setup["fl-client-1"].components_ns["tcp_handshake"] == pytest.approx(148.559085e6, abs=2)
    # ClientHello (260 bytes, record 22) and the flight that answers ServerHello (644 bytes):
    #   client 0: 467.562636 and 356.161876; client 1: 512.434550 and 296.165366
    assert setup["fl-client-0"].components_ns["tls_handshake"] == pytest.approx(111.400760e6, abs=2)
    assert setup["fl-client-1"].components_ns["tls_handshake"] == pytest.approx(216.269184e6, abs=2)
    for one in setup.values():
        # That flight's first encrypted record has 458 bytes: a Finished alone has 58 to 69.
        assert (one.tls_version, one.mutual, one.resumed) == ("1.3", "yes", False)
        assert one.syn_retransmissions == 0
        assert one.served_rounds == 5
        assert sum(one.components_ns.values()) + one.residual_ns == one.duration_ns
    assert [(one.tls_version, one.mutual) for one in baseline.setup] == [(None, None)] * 2


def test_training_time_lies_between_the_sidecars_last_and_first_bytes(ledger: Ledger) -> None:
    # Round 1, client 1, loopback: the sidecar's last byte to the application 2502.718 ms after the
    # round's start, the application's first byte to the sidecar 3377.539 ms after it.
    assert ledger.rounds[0].components_ns["compute"] == pytest.approx(874.820659e6, abs=2)
    # Round 2: 13897.993712 and 14852.369331 ms after round 1's start.
    assert ledger.rounds[1].components_ns["compute"] == pytest.approx(954.375619e6, abs=2)


def test_the_report_is_plain_and_whole() -> None:
    report = json.loads(GOLDEN.read_text())
    assert report["coverage"] == 1.0 and report["loss_log"] == [] and set(report["loss"].values()) == {0}
    assert report["rounds_counted"] == 4 and report["rounds_withheld"] == 0
    assert report["overhead"]["duration"]["ci95"] is not None
    # mean of rounds 2..5 against the baseline's, from the two lists above
    mean = (
        sum(DURATIONS_NS[n] for n in range(2, 6)) / 4 - sum(BASELINE_DURATIONS_NS[n] for n in range(2, 6)) / 4
    )
    assert report["overhead"]["duration"]["delta_s"] == pytest.approx(mean / 1e9, abs=1e-9)
