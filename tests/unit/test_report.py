"""report.json, from made-up runs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from analysis.ledger.model import COMPONENTS
from analysis.report.report import build_report
from tests.unit.synthetic_report import make_report, text_of
from tests.unit.synthetic_run import MS, baseline_pair, make_ledger, make_run
from ztprobe.errors import RunDirError


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report()


def test_the_contract_holds(report: dict[str, Any]) -> None:
    assert report["schema_version"] == 1
    assert (report["experiment"], report["runtime"]) == ("net2-sec3", "local")
    for one in report["rounds"]:
        assert one.keys() >= {"round", "duration_s", "critical_client", "components", "residual_s"}
        assert sum(one["components"].values()) + one["residual_s"] == pytest.approx(
            one["duration_s"], abs=1e-8
        )
    for part in report["components"].values():
        assert part.keys() >= {"median_s", "p99_s", "share"}
    assert list(report["components"]) == list(COMPONENTS)
    assert report["overhead"]["baseline"] == "net0-sec0"
    assert report["overhead"]["duration"].keys() == {"delta_s", "ci95"}
    assert report["overhead"]["components"].keys() == set(COMPONENTS)
    assert report["emulation"].keys() >= {"profile", "backend", "requested", "measured"}
    assert report["enforcement"].keys() >= {"network_policy", "mtls"}
    assert set(report["loss"].values()) == {0}
    assert len(report["loss"]) == 7
    assert report["coverage"] == 1.0
    assert all(probe.keys() >= {"signal", "hook", "run_count", "run_time_ns"} for probe in report["probes"])
    json.dumps(report, allow_nan=False)


def test_shares_and_overheads_add_up(report: dict[str, Any]) -> None:
    shares = [part["share"] for part in report["components"].values()] + [report["residual"]["share"]]
    assert sum(shares) == pytest.approx(1.0, abs=1e-7)
    overhead = report["overhead"]
    deltas = [part["delta_s"] for part in overhead["components"].values()] + [overhead["residual"]["delta_s"]]
    assert sum(deltas) == pytest.approx(overhead["duration"]["delta_s"], abs=1e-7)
    for part in (*overhead["components"].values(), overhead["duration"]):
        assert part["ci95"][0] <= part["delta_s"] <= part["ci95"][1]


def test_medians_leave_round_1_out(report: dict[str, Any]) -> None:
    counted = sorted(one["duration_s"] for one in report["rounds"] if one["counted"])
    assert [one["counted"] for one in report["rounds"]] == [False] + [True] * 9
    assert report["rounds_counted"] == 9
    assert report["duration"]["median_s"] == counted[4]


def test_components_follow_the_truth(report: dict[str, Any]) -> None:
    assert report["components"]["transmission"]["median_s"] == pytest.approx(2.4, rel=0.06)
    assert report["overhead"]["components"]["transmission"]["delta_s"] == pytest.approx(2.355, rel=0.05)
    assert report["sub_rows"]["transmission"]["congestion_window"]["median_s"] == pytest.approx(
        1.97, rel=0.06
    )


def test_the_only_round_counts_and_says_so() -> None:
    ledger = make_ledger(rounds=1)
    report = build_report(make_run(ledger=ledger), ledger, baseline_pair())
    assert report["rounds_counted"] == 1
    assert report["duration"]["median_s"] == report["rounds"][0]["duration_s"]
    assert report["overhead"]["duration"]["ci95"] is None
    assert "No interval: 1 round of net2-sec3 and" in report["overhead"]["method"]
    assert any("only round" in note for note in report["notes"])
    assert "too few rounds" in text_of(report)


def test_a_run_without_rounds_is_refused() -> None:
    empty = replace(make_ledger(), rounds=())
    with pytest.raises(RunDirError, match="holds no complete round"):
        build_report(make_run(), empty, None)


def test_p99_appears_with_100_rounds() -> None:
    ledger = make_ledger(rounds=101)
    report = build_report(make_run(ledger=ledger), ledger, None)
    assert report["duration"]["p99_s"] >= report["duration"]["median_s"]
    assert "p99 of a round" in text_of(report)


def test_training_time_is_checked_against_what_clients_logged(report: dict[str, Any]) -> None:
    check = report["compute_check"]
    assert check["pairs"] == 45
    assert check["within_limit"]
    assert check["median_abs_difference_ms"] == pytest.approx(2.5, abs=0.6)


def test_training_time_that_disagrees_is_noted() -> None:
    ledger = make_ledger()
    off = replace(
        ledger,
        rounds=tuple(
            replace(
                one,
                clients=tuple(
                    replace(row, compute_kernel_ns=(row.compute_reported_ns or 0) + 300 * MS)
                    for row in one.clients
                ),
            )
            for one in ledger.rounds
        ),
    )
    report = build_report(make_run(), off, None)
    assert report["compute_check"]["median_abs_difference_ms"] == 300.0
    assert not report["compute_check"]["within_limit"]
    assert any("off by 300.0 ms" in note for note in report["notes"])


def test_connection_setup_is_amortised(report: dict[str, Any]) -> None:
    setup = report["connection_setup"]
    assert setup["amortised_s"] == pytest.approx(setup["median_s"] / 10)
    assert setup["components"]["tls_handshake"]["median_s"] == pytest.approx(0.170, abs=0.01)
    assert setup["clients"][0]["mutual"] == "yes"


def test_time_to_95_percent_counts_from_round_1(report: dict[str, Any]) -> None:
    rounds = report["rounds"]
    assert rounds[9]["accuracy"] >= 0.95 > rounds[4]["accuracy"]
    assert report["accuracy"]["time_to_target_s"] == pytest.approx(
        sum(one["duration_s"] for one in rounds), abs=1e-6
    )


def test_syns_are_counted_per_round() -> None:
    ledger = make_ledger(syn_count=1)
    report = build_report(make_run(ledger=ledger), ledger, None)
    assert [one["syn_count"] for one in report["rounds"]] == [5] * 10


def test_lost_events_and_failed_proofs_are_shouted() -> None:
    failed = {"name": "forbidden: x", "expected": "dropped", "observed": "connected", "passed": False}
    run = make_run(
        loss={"map_full": 3, "reader_behind": 0},
        enforcement={"network_policy_expected": True, "mtls_expected": True, "network_policy": [failed]},
    )
    report = build_report(run, make_ledger(), None)
    assert report["loss"]["map_full"] == 3
    assert report["loss"]["ring_buffer_full"] == 0
    assert report["enforcement"]["network_policy"]["proven"] is False
    text = text_of(report)
    assert "lost: map full 3" in text
    assert "NOT proven: 0 of 1" in text
    assert "FAILED  forbidden: x: expected dropped, saw connected" in text
    assert "expected, but nothing was proven" in text


def test_an_unlike_baseline_is_noted() -> None:
    ledger = make_ledger()
    report = build_report(make_run(options={"clients": 3}), ledger, baseline_pair())
    assert "The baseline differs in --clients: 5 instead of 3." in report["notes"]
