"""What was in force when: from a run's record into ledger, table, figures and page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from analysis.report.conditions import conditions_of, round_conditions
from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.report import build_report
from analysis.report.text_report import print_report
from tests.unit.synthetic_run import START_NS, make_ledger, make_run
from ztprobe.profile.schedule import CHANGING
from ztprobe.rundir.schema import problem_in
from ztprobe.rundir.store import Run

S = 10**9


def a_change(at_s: float | None, step: int, **values: Any) -> dict[str, Any]:
    due_ns = START_NS + round((at_s or 0) * S)
    defaults = dict(zip(CHANGING, (0.0, 0.0, "none", 0.0, None), strict=True))
    return {
        "due_ns": due_ns, "from_ns": due_ns, "at_ns": None if at_s is None else due_ns + 1_000_000,
        "number": step, "step": step, "skipped": 0, "error": None, **defaults, **values,
    }  # fmt: skip


def moving(*changes: dict[str, Any]) -> Run:
    steps = [{"from_s": i * 5.0, **{key: c[key] for key in CHANGING}} for i, c in enumerate(changes)]
    schedule = {"name": "net7", "repeat": True, "period_s": 20.0, "steps": steps, "changes": list(changes)}
    run = make_run("net7-sec0")
    run.meta["emulation"] |= {
        "requested": {"delay_ms": 35.0, "rate_mbit": 12.0},
        "measured": {"delay_ms": 35.03, "rate_mbit": 12.0},
        "schedule": schedule,
    }
    return run


def test_one_condition_without_a_schedule() -> None:
    conditions = conditions_of(make_run("net2-sec3").meta)
    assert not conditions.scheduled
    assert [span.delay_ms for span in conditions.between(5, 5)] == [80]
    assert conditions_of({"emulation": {"requested": None}}).between(5, 5)[0].delay_ms is None


def test_spans_begin_when_a_change_was_confirmed() -> None:
    run = moving(
        a_change(0, 0, delay_ms=35.0, rate_mbit=12.0),
        a_change(5, 1, delay_ms=85.0, rate_mbit=9.0),
        a_change(10, 2, delay_ms=85.0),
    )
    assert problem_in(run.meta) is None
    conditions = conditions_of(run.meta)
    at = START_NS + 5 * S + 1_000_000
    assert [s.delay_ms for s in conditions.between(at - 1, at - 1)] == [35]
    assert [s.delay_ms for s in conditions.between(at, at)] == [85]
    assert [s.delay_ms for s in conditions.between(0, START_NS)] == [35]  # before it was begun, too
    assert round_conditions(conditions, at - S, 3 * S) == [
        {"from_s": 0, "to_s": 1, "step": 0, "delay_ms": 35, "jitter_ms": 0, "distribution": "none",
         "loss_pct": 0, "rate_mbit": 12},
        {"from_s": 1, "to_s": 3, "step": 1, "delay_ms": 85, "jitter_ms": 0, "distribution": "none",
         "loss_pct": 0, "rate_mbit": 9},
    ]  # fmt: skip


def test_after_a_failed_change_nothing_is_known() -> None:
    failed = a_change(None, 1, delay_ms=85.0, error="pod-a: gone") | {
        "due_ns": START_NS + 5 * S, "from_ns": START_NS + 5 * S,
    }  # fmt: skip
    jittery = a_change(0, 0, delay_ms=35.0, jitter_ms=5.0, distribution="normal")
    run = moving(jittery, failed, a_change(10, 0, delay_ms=35.0))
    assert problem_in(run.meta) is None
    conditions = conditions_of(run.meta)
    (unknown,) = conditions.between(START_NS + 6 * S, START_NS + 7 * S)
    assert (unknown.known, unknown.delay_ms, unknown.step) == (False, None, None)
    ledger = make_ledger()
    report = build_report(run, ledger, None)
    assert any("1 of 2 changes of the network could not be put into force" in n for n in report["notes"])
    assert "pod-a: gone" in " ".join(report["notes"])
    assert render_page(report, draw_figures(report))


def test_rounds_in_which_the_delay_line_was_late_are_marked() -> None:
    run, ledger = make_run("net2-sec3"), make_ledger()
    second = ledger.rounds[1]
    span = {
        "from_ns": second.start_ns + 5,
        "to_ns": second.start_ns + S,
        "worst_ns": 5_998_914_000,
        "packets": 9,
    }
    run.meta["emulation"]["stats"] = {"delay_line": {"late": {"worst_ns": 5_998_914_000, "spans": [span]}}}
    assert problem_in(run.meta) is None
    report = build_report(run, ledger, (run, ledger))
    marked = {
        one["round"]: one["delay_line_late_s"] for one in report["rounds"] if "delay_line_late_s" in one
    }
    assert marked == {second.round: 5.998914}
    (said, of_baseline) = [note for note in report["notes"] if "up to 5999 ms late" in note]
    assert f"in round {second.round} (it was stopped" in said
    assert of_baseline == f"Baseline: {said}"
    assert render_page(report, draw_figures(report))
    run.meta["emulation"]["stats"]["delay_line"]["late"]["spans"] = [{"from_ns": "soon"}]
    assert "stats.delay_line.late" in str(problem_in(run.meta))
    run.meta["emulation"]["stats"]["delay_line"] = {}
    assert not any("late" in note for note in build_report(run, ledger, None)["notes"])


def test_late_and_skipped_changes_are_noted() -> None:
    late = a_change(5, 1, delay_ms=85.0) | {"skipped": 2}
    late["at_ns"] += 250_000_000
    report = build_report(moving(a_change(0, 0, delay_ms=35.0), late), make_ledger(), None)
    assert "2 steps of the network's schedule were left out: the time had passed." in report["notes"]
    assert "1 change of the network came late, by 251 ms at most." in report["notes"]


def an_other(from_s: float, to_s: float | None, *changes: dict[str, Any]) -> dict[str, Any]:
    """Somebody else's profile, with these changes since it was applied (seconds from the first round)."""
    return {
        "lease": "1f2e3d", "profile": "net1", "backend": "netem", "direction": "egress", "to": None,
        "pods": ["fl-client-0", "fl-client-1"], "from_ns": START_NS + round(from_s * S),
        "to_ns": None if to_s is None else START_NS + round(to_s * S),
        "changes": [{key: c[key] for key in ("at_ns", *CHANGING)} for c in changes],
    }  # fmt: skip


def test_somebody_elses_profile_is_told() -> None:
    ledger = make_ledger()
    third, fourth = ledger.rounds[2:4]
    run = make_run("net0-sec0")
    run.meta["emulation"]["requested"] = {}
    from_s, to_s = ((third.start_ns + 5 - START_NS) / S, (fourth.start_ns + 5 - START_NS) / S)
    change = a_change(from_s, 0, delay_ms=20.0, jitter_ms=5.0) | {"at_ns": third.start_ns + 5}
    run.meta["emulation"]["others"] = [an_other(from_s, to_s, change)]
    assert problem_in(run.meta) is None
    report = build_report(run, ledger, None)
    assert {one["round"] for one in report["rounds"] if "other_profiles" in one} == {3, 4}
    said = (
        "net1 (delay 20 ms, jitter 5 ms) was on egress of 2 pods (lease 1f2e3d) during rounds 3 to 4, beside"
        " this run's own profile: medians and overhead hold what it cost."
    )
    assert said in report["notes"]
    printed = io.StringIO()
    print_report(report, printed)
    assert said in " ".join(printed.getvalue().split())
    # The same of a baseline, and of one that stayed.
    run.meta["emulation"]["others"] = [an_other(from_s, None, change, a_change(from_s + 1, 1))]
    report = build_report(make_run(), make_ledger(), (run, ledger))
    assert any(
        note.startswith("Baseline: net1 (delay 20 ms, jitter 5 ms) was on egress of 2 pods")
        and "(lease 1f2e3d, changed 1 time) during rounds 3 to 10" in note
        for note in report["notes"]
    )


def test_every_view_shows_the_schedule(tmp_path: Path) -> None:
    run = moving(
        a_change(0, 0, delay_ms=35.0, rate_mbit=12.0),
        a_change(7, 1, delay_ms=85.0, rate_mbit=9.0),
        a_change(12, 0, delay_ms=35.0, rate_mbit=12.0),
    )
    report = build_report(run, make_ledger(), None)
    assert report["rounds"][0]["conditions"][0]["delay_ms"] == 35
    printed = io.StringIO()
    print_report(report, printed, colour=False)
    text = " ".join(printed.getvalue().split())
    assert "2 changes over 3 steps, again after 20 s: delay 35 … 85 ms, rate 9 … 12 Mbit/s" in text
    assert "in the end step 1" in text
    assert max(map(len, printed.getvalue().splitlines())) <= 100
    figures = draw_figures(report)
    assert "[Mbit/s]" in figures["rounds"]
    assert draw_figures(report) == figures
    assert "It changed in place" in render_page(report, figures)
    plain = build_report(make_run(), make_ledger(), None)
    assert all("conditions" not in one for one in plain["rounds"])
    assert "It changed in place" not in render_page(plain, draw_figures(plain))
