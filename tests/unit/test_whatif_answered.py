"""Questions that measured runs let be answered, judged by runs that had no part in that."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.whatif.answered import answered_by, is_answered, mean_error
from analysis.whatif.check import kept_checks
from tests.unit.recorded_run import RECORDED
from ztprobe.cli import main


def row(options: str, error: float, measured_s: float, **changed: Any) -> dict[str, Any]:
    of = {
        "options": options,
        "source": "net2-sec0 (5 clients)",
        "profile": "net2",
        "reconnect": False,
        "congestion_control": "cubic",
        "contended": False,
        "measured_s": measured_s,
        "error": error,
        "error_beyond": max(0.0, abs(error) - 0.05),
    }
    return of | changed


def check(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"study": "some", "rows": list(rows)}


def test_errors_either_way_do_not_cancel_out() -> None:
    rows = [row("--without mtls", 0.15, 1.0), row("--without mtls", -0.15, 2.0)]
    assert mean_error(rows) == pytest.approx(0.15)
    assert not is_answered(rows)
    assert is_answered([row("--without mtls", -0.1, 1.0)])
    assert not is_answered([])


def test_what_others_show_to_be_wrong_is_not_counted() -> None:
    judged = check(
        row("--without mtls", 0.3, 1.0),
        row("--reconnect", 0.01, 2.0),
        row("--without policy", 0.01, 3.0),  # nobody else has measured it
    )
    others = {
        "first": check(row("--without mtls", 0.02, 4.0), row("--reconnect", 0.5, 5.0)),
        "second": check(row("--without mtls", -0.04, 6.0)),
    }
    found = answered_by(judged, others)
    assert found["by"] == ["first", "second"]
    assert found["errors"]["predictions"] == 1
    assert found["errors"]["largest_error"] == pytest.approx(0.3)
    assert found["errors"]["p95_error_beyond"] == pytest.approx(0.25)


def test_runs_do_not_judge_themselves() -> None:
    judged = check(row("--without mtls", 0.02, 1.0))
    again = check(row("--without mtls", 0.02, 1.0))  # the same cell's mean
    assert answered_by(judged, {"again": again}) == {"by": [], "errors": None}


def test_a_cells_own_kind_decides_where_it_was_measured() -> None:
    judged = check(row("--without mtls", 0.0, 1.0))
    other_source = row("--without mtls", 0.9, 2.0, source="net2-sec2 (5 clients)")
    assert answered_by(judged, {"other": check(other_source)})["errors"] is None
    same_source = row("--without mtls", 0.01, 3.0)
    assert answered_by(judged, {"other": check(other_source, same_source)})["errors"]["predictions"] == 1


def test_disturbed_runs_neither_judge_nor_are_judged() -> None:
    quiet = row("--without mtls", 0.01, 1.0)
    disturbed = row("--without mtls", 0.01, 2.0, contended=True)
    assert answered_by(check(quiet), {"other": check(disturbed)})["errors"] is None
    assert answered_by(check(disturbed), {"other": check(quiet)})["errors"] is None


def test_runs_that_had_no_part_in_the_decision_find_answers_right() -> None:
    """What is told of whatif-holdout is decided by the other two."""
    kept = kept_checks()
    found = answered_by(kept["whatif-holdout"], {name: kept[name] for name in ("paper-80", "whatif-check")})
    assert found["errors"]["predictions"] >= 50
    assert found["errors"]["mean_error_beyond"] <= 0.03
    assert found["errors"]["p95_error_beyond"] <= 0.08


@pytest.mark.parametrize("options", [["--profile", "net4"], ["--reconnect"]])
def test_an_answer_that_measured_runs_show_to_be_wrong_is_not_given(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["whatif", str(RECORDED), *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "is not answered, as measured runs under net2 show that answers are wrong: off by " in shown.err
    assert "ztprobe whatif --check whatif-check shows each" in shown.err
    assert shown.err.count("\n") == 1


def test_a_check_says_how_far_off_what_is_told_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whatif", "--check", "whatif-holdout"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "by what paper-80 and whatif-check showed, 106 of these predictions would be told" in printed
