"""Verdicts on pairs, and how they are shown."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ztprobe.cli import main
from ztprobe.validate.model import Bound, Outcome, Pair, judge
from ztprobe.validate.report import WIDTH, as_json, print_table, write_report
from ztprobe.validate.scenarios.catalogue import SCENARIOS

MS = 1_000_000


def pair(
    error_ms: float, *, true_ms: float = 50.0, elsewhere_ms: float | None = 0.0, size: str = "50 ms"
) -> Pair:
    return Pair(
        round=2,
        size=size,
        true_ns=round(true_ms * MS),
        attributed_ns=round((true_ms + error_ms) * MS),
        elsewhere_ns=None if elsewhere_ms is None else round(elsewhere_ms * MS),
    )


def outcome(*pairs: Pair, problems: tuple[str, ...] = ()) -> Outcome:
    bound = Bound(absolute_ms=1, relative=0.02)
    return Outcome(
        name="syn-ack-held",
        title="SYN-ACK held",
        background="net0-sec3, 2 clients, mutual TLS " + "and more " * 9,
        bound=bound,
        cases=tuple(judge("tcp_handshake", pairs, bound)),
        problems=problems,
        run_dir="syn-ack-held",
    )


@pytest.mark.parametrize(
    ("bound", "true_ms", "expected_ms"),
    [
        (Bound(absolute_ms=1, relative=0.02), 10, 1),
        (Bound(absolute_ms=1, relative=0.02), 100, 2),
        (Bound(relative=0.05), 10, 0.5),
    ],
)
def test_the_larger_of_two_bounds_holds(bound: Bound, true_ms: float, expected_ms: float) -> None:
    assert bound.ns(true_ms * MS) == pytest.approx(expected_ms * MS)


def test_one_spoiled_round_does_not_spoil_a_size() -> None:
    (case,) = judge("tcp_handshake", [pair(0.1), pair(-0.2), pair(30)], Bound(absolute_ms=1))
    assert case.passed
    assert case.error_ns == pytest.approx(0.1 * MS)
    assert case.error_ci95_ns == pytest.approx((-0.2 * MS, 30 * MS))


@pytest.mark.parametrize(
    "bad", [[pair(1.5)], [pair(-1.5)], [pair(0, elsewhere_ms=2.0)]], ids=["more", "less", "cross-talk"]
)
def test_error_and_cross_talk_both_count(bad: list[Pair]) -> None:
    (case,) = judge("tcp_handshake", bad, Bound(absolute_ms=1))
    assert not case.passed


def test_sizes_are_judged_apart_and_in_order() -> None:
    cases = judge(
        "dns", [pair(0, size="5 ms"), pair(9, size="20 ms"), pair(0, size="5 ms")], Bound(absolute_ms=1)
    )
    assert [(c.size, len(c.pairs), c.passed) for c in cases] == [("5 ms", 2, True), ("20 ms", 1, False)]


def test_a_scenario_without_cases_or_with_problems_has_not_passed() -> None:
    assert outcome(pair(0)).passed
    assert not outcome().passed
    assert not outcome(pair(0), problems=("the delay line died",)).passed


def test_table_fits_and_says_what_was_missed() -> None:
    content = as_json(
        [outcome(pair(0), pair(0), problems=("x" * 300,)), outcome(pair(44_444, true_ms=99_999))], {}
    )
    stream = io.StringIO()
    print_table(content, stream)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert any("MISSED" in line for line in lines)
    assert lines[-1] == "2 costs in 2 scenarios: 1 beyond their bounds; 1 scenario with problems"


def test_page_is_self_contained_and_the_same_every_time(tmp_path: Path) -> None:
    content = as_json([outcome(pair(0.2), pair(-0.1, size="5 <ms>"))], {"kernel": "6.1", "machine": "x86_64"})
    write_report(tmp_path, content)
    page = (tmp_path / "validation.html").read_text()
    assert "<svg" in page and "5 &lt;ms&gt;" in page
    assert "<script" not in page and 'href="http' not in page and "src=" not in page
    write_report(tmp_path, content)
    assert (tmp_path / "validation.html").read_text() == page


def test_page_can_be_drawn_with_a_cost_of_nothing(tmp_path: Path) -> None:
    nothing = Outcome(
        name="window-closed",
        title="",
        background="",
        bound=Bound(relative=0.05),
        cases=tuple(
            judge("receive window", [pair(0, true_ms=0.0), pair(0, size="9 ms")], Bound(relative=0.05))
        ),
        problems=(),
        run_dir="window-closed",
    )
    write_report(tmp_path, as_json([nothing], {"kernel": "6.1"}))
    assert "receive window" in (tmp_path / "validation.html").read_text()


def test_page_can_be_drawn_without_any_case(tmp_path: Path) -> None:
    write_report(tmp_path, as_json([outcome(problems=("broken",))], {"kernel": "6.1"}))
    assert "broken" in (tmp_path / "validation.html").read_text()


def test_scenarios_have_plans_and_unlike_names() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    for scenario in SCENARIOS:
        plan = scenario.make(scenario.by_round)
        assert plan.claims
        assert 1 not in scenario.by_round
        for size in set(scenario.by_round.values()):
            assert list(scenario.by_round.values()).count(size) >= 1


def test_list_runs_nothing_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [scenario.name for scenario in SCENARIOS]
    assert max(map(len, lines)) <= WIDTH


def test_unknown_scenario_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--scenario", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert "unknown scenario 'nonsense'" in error and "proxy-stop" in error


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 7)])
def test_exit_code_says_whether_all_is_within_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passed: bool, status: int
) -> None:
    content = as_json([outcome(pair(0 if passed else 9))], {"kernel": "6.1"})
    run_suite: Callable[..., dict[str, Any]] = lambda *_: content  # noqa: E731
    monkeypatch.setattr("ztprobe.validate.suite.run_suite", run_suite)
    monkeypatch.setattr("ztprobe.experiment.requirements.check_main_job", lambda *_: [])
    assert main(["validate", "--scenario", "dns-held", "--out", str(tmp_path / "v")]) == status
