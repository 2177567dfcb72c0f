"""What the report makes of the workload's own events about its options."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from analysis.ledger.model import COMPONENTS
from analysis.report.html import render_page
from analysis.report.report import build_report
from analysis.report.text_report import print_report
from analysis.report.workload import workload_lines, workload_of
from tests.schemas import problems
from tests.unit.synthetic_run import make_ledger, make_run


def looks(round_number: int, *unusual: list[str]) -> list[dict[str, Any]]:
    return [
        {"event": "update_inspected", "round": round_number, "client_id": f"fl-client-{i}", "unusual": why}
        for i, why in enumerate(unusual)
    ]


def exchange(number: int, kind: str, start_ns: int, end_ns: int) -> list[dict[str, Any]]:
    return [
        {"event": "exchange_start", "round": number, "kind": kind, "time_monotonic_ns": start_ns},
        {"event": "exchange_end", "round": number, "kind": kind, "time_monotonic_ns": end_ns},
    ]


EVENTS = [
    {
        "event": "run_start",
        "data_reader": "idx",
        "config": {"options": {"compression": "fp16", "algorithm": "fedavg"}},
    },
    *looks(1, [], ["norm"]),
    *looks(2, [], ["norm", "direction"]),
    {"event": "privacy_spent", "round": 1, "epsilon": 3.0, "delta": 1e-5, "noise_multiplier": 2.0},
    {"event": "privacy_spent", "round": 2, "epsilon": 4.56, "delta": 1e-5, "noise_multiplier": 2.0},
    *exchange(1, "UNMASK", 0, 10_000_000),
    *exchange(2, "UNMASK", 50_000_000, 80_000_000),
    {"event": "secure_sum", "round": 1, "clients": 5, "dropped": []},
    {"event": "secure_sum", "round": 2, "clients": 4, "dropped": ["fl-client-3"]},
]


def test_all_kinds() -> None:
    found = workload_of(EVENTS)
    assert found["data_reader"] == "idx"
    assert found["options"]["compression"] == "fp16"
    assert found["updates"] == {
        "fl-client-0": {"rounds": 2, "unusual_rounds": 0, "reasons": {}},
        "fl-client-1": {"rounds": 2, "unusual_rounds": 2, "reasons": {"norm": 2, "direction": 1}},
    }
    assert found["privacy"] == {"epsilon": 4.56, "delta": 1e-5, "noise_multiplier": 2.0}
    assert found["secure_aggregation"] == {
        "rounds": 2,
        "least_clients": 4,
        "dropped": {"fl-client-3": 1},
        "exchange_median_s": {"UNMASK": 0.02},
    }
    assert dict(workload_lines(found)) == {
        "unusual updates": "fl-client-1 in 2 of 2 rounds (norm, direction)",
        "privacy": "epsilon 4.56 at delta 1e-05 was spent, with noise of 2 times the clip",
        "secure sums": "of 4 clients or more; dropped out: fl-client-3 in 1 round; exchanges as the server "
        "logged them (median, training in MASKED): UNMASK 20.0 ms",
    }


def test_nothing_was_said() -> None:
    found = workload_of([{"event": "round_start", "round": 1}, {"no": "event"}, {"event": "secure_sum"}])
    assert set(found.values()) == {None}
    assert not list(workload_lines(found))


def test_in_table_and_page() -> None:
    ledger = make_ledger()
    run = make_run(ledger=ledger)
    run.rounds.extend(EVENTS)
    report = build_report(run, ledger, None)
    stream = io.StringIO()
    print_report(report, stream)
    assert any("short exchanges are below what counts as a message" in note for note in report["notes"])
    assert "unusual updates   fl-client-1 in 2 of 2 rounds (norm, direction)" in stream.getvalue()
    figures = dict.fromkeys(("breakdown", "rounds", "clients", "overhead"), "<svg></svg>")
    assert "What the workload says of its options" in render_page(report, figures)


def test_a_path_over_two_levels_is_said_and_shown() -> None:
    flat = make_ledger()
    run = make_run(ledger=flat)
    assert not any("edge aggregators" in note for note in build_report(run, flat, None)["notes"])
    parts = dict.fromkeys(COMPONENTS, 1_000_000)
    levels = (("fl-server", "fl-edge-0", parts), ("fl-edge-0", "fl-client-0", parts))
    rounds = tuple(
        replace(
            one,
            critical_through=("fl-edge-0",),
            levels_ns=levels,
            clients=tuple(replace(each, through=("fl-edge-0",)) for each in one.clients),
        )
        for one in flat.rounds
    )
    report = build_report(run, replace(flat, rounds=rounds), None)
    assert any("through both levels" in note for note in report["notes"])
    one = report["rounds"][0]
    assert one["critical_through"] == one["clients"][0]["through"] == ["fl-edge-0"]
    assert [level["client"] for level in one["levels"]] == ["fl-edge-0", "fl-client-0"]
    assert one["levels"][1]["components"]["propagation"] == 0.001
    assert [
        problem for problem in problems("report", report) if "level" in problem or "through" in problem
    ] == []
