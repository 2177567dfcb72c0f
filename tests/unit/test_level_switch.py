"""A level put in force while rounds go on: what is asked, what is refused, what a report says of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from analysis.ledger.ledger import build_ledger
from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.level_switch import levels_of_rounds, switch_lines
from analysis.report.report import build_report
from tests.schemas import problems
from tests.unit.test_levels import without
from tests.unit.test_manifests import options
from ztprobe.cli import main
from ztprobe.errors import EnforcementError, UsageError
from ztprobe.experiment.level_switch import LevelSwitch, SwitchRecord, parse_level_switch
from ztprobe.experiment.names import Experiment
from ztprobe.paths import MANIFESTS_DIR
from ztprobe.profile.model import profile_names
from ztprobe.progress import QuietProgress
from ztprobe.rundir.schema import problem_in
from ztprobe.rundir.store import Run, load_run
from ztprobe.runtime.interface import Enforcement, NotProven, Proof
from ztprobe.runtime.local import placement
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.later_level import policies_of
from ztprobe.runtime.local.workload import plan
from ztprobe.study.plan import load_study

RECONNECTING = Path(__file__).parents[1] / "data" / "net2-sec3-reconnect"
PASSED = {"name": "forbidden: outsider", "expected": "timed out", "observed": "timed out", "passed": True}


def test_a_level_and_a_round_are_read() -> None:
    switch = parse_level_switch("sec3@round4", Experiment(profile="net2", level=2), 10)
    assert switch == LevelSwitch(level=3, round=4)
    assert (switch.name, switch.slug) == ("sec3@round4", "to-sec3-round4")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sec1", "expected a level and a round, such as sec1@round4"),
        ("sec4@round2", "expected a level and a round"),
        ("sec1@4", "expected a level and a round"),
        ("sec0@round4", "net0-sec0 has that level from the start"),
        ("sec2@round4", "sidecars cannot come or go while rounds go on; from sec0 only sec1 can be reached"),
        ("sec1@round1", "expected a round from 2 to 10"),
        ("sec1@round11", "expected a round from 2 to 10"),
    ],
)
def test_what_cannot_be_had_is_one_line(text: str, problem: str, capsys) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_level_switch(text, Experiment(profile="net0", level=0), 10)
    assert main(["trace", "--experiment", "net0-sec0", "--switch-level", text]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--switch-level" in said and problem in said


@pytest.mark.parametrize(("level", "later", "policies"), [(0, 1, 4), (2, 3, 4), (1, 0, 0), (3, 2, 0)])
def test_the_later_policies_are_those_of_the_later_level(level: int, later: int, policies: int) -> None:
    chosen = options(level, later_level=later)
    workload = plan(render(MANIFESTS_DIR / "overlays" / f"sec{level}"), chosen)
    found = policies_of(MANIFESTS_DIR, chosen, workload, placement.place(workload))
    assert found is not None and len(found) == policies


def test_manifests_that_are_not_the_later_level_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    chosen = options(0, later_level=1)
    workload = plan(render(MANIFESTS_DIR / "overlays" / "sec0"), chosen)
    placed = placement.place(workload)
    with pytest.raises(EnforcementError, match="not sec1: it has NetworkPolicies, and they have none"):
        policies_of(without(tmp_path, 1, "network-policy"), chosen, workload, placed)
    with pytest.raises(EnforcementError, match=r"sec0 cannot become sec2 while rounds go on: .* fl-server"):
        policies_of(MANIFESTS_DIR, options(0, later_level=2), workload, placed)


class Switching:
    """A runtime that is asked to switch; what it finds is given."""

    def __init__(self, *, passed: bool) -> None:
        self.calls: list[str] = []
        self._proof = Proof(name="forbidden: a -> b", expected="timed out", observed="seen", passed=passed)

    def switch_level(self) -> None:
        self.calls.append("switch")

    def prove_switch(self) -> Enforcement:
        self.calls.append("prove")
        return Enforcement(network_policy_expected=True, mtls_expected=False, network_policy=(self._proof,))


def event(name: str, number: int) -> dict[str, Any]:
    return {"event": name, "round": number, "time_monotonic_ns": number * 1000}


def test_the_switch_comes_with_its_round_once_and_is_recorded() -> None:
    runtime, meta = Switching(passed=True), {}
    record = SwitchRecord(LevelSwitch(level=1, round=3), runtime, meta, QuietProgress())  # type: ignore[arg-type]
    assert meta["level_switch"]["at_ns"] is None and meta["level_switch"]["round"] == 3
    for number in (1, 2):
        record.take(event("round_start", number))
        record.take(event("round_end", number))
    assert runtime.calls == []
    record.take(event("round_start", 3))
    record.take(event("round_end", 3))
    record.take(event("round_start", 4))
    assert runtime.calls == ["switch", "prove"]
    told = meta["level_switch"]
    assert told["due_ns"] == 3000 < told["from_ns"] <= told["at_ns"] <= told["proven_ns"]
    assert [proof["passed"] for proof in told["proofs"]] == [True]


def test_a_level_that_is_not_in_force_ends_the_run() -> None:
    meta: dict[str, Any] = {}
    switching = Switching(passed=False)
    record = SwitchRecord(LevelSwitch(level=1, round=2), switching, meta, QuietProgress())  # type: ignore[arg-type]
    with pytest.raises(NotProven, match="not in force: forbidden: a -> b"):
        record.take(event("round_start", 2))
    assert [proof["passed"] for proof in meta["level_switch"]["proofs"]] == [False]


def test_without_a_switch_nothing_is_recorded() -> None:
    meta: dict[str, Any] = {}
    runtime = Switching(passed=True)
    SwitchRecord(None, runtime, meta, QuietProgress()).take(event("round_start", 1))  # type: ignore[arg-type]
    assert meta == {} and runtime.calls == []


def switched(round_number: int, share: float, path: Path = RECONNECTING) -> tuple[Run, Any]:
    """A recorded run as if its level had been switched when so much of a round had passed."""
    run = load_run(path)
    ledger = build_ledger(run)
    one = next(one for one in ledger.rounds if one.round == round_number)
    at_ns = one.start_ns + round(share * one.duration_ns)
    told = {"to_level": 2, "round": round_number, "due_ns": one.start_ns, "from_ns": one.start_ns}
    told |= {"at_ns": at_ns, "proven_ns": at_ns, "proofs": [PASSED]}
    return dataclasses.replace(run, meta=run.meta | {"level_switch": told}), ledger


def test_rounds_are_marked_and_who_reconnected_is_told() -> None:
    run, ledger = switched(3, 0.1)
    assert problem_in(run.meta) is None
    report = build_report(run, ledger, None)
    assert problems("report", report) == []
    levels = {one["round"]: one["security_levels"] for one in report["rounds"]}
    last = max(levels)
    assert levels == {1: ["sec3"], 2: ["sec3"], 3: ["sec3", "sec2"]} | {
        number: ["sec2"] for number in range(4, last + 1)
    }
    switch = report["level_switch"]
    assert (switch["from"], switch["to"], switch["round"]) == ("sec3", "sec2", 3)
    # Its clients make a new connection after each training.
    assert [one["reconnected_round"] for one in switch["clients"]] == [3] * len(switch["clients"])
    assert switch["before"]["rounds"] == 1 and switch["after"]["rounds"] == last - 3
    words = " ".join(text for _, text in switch_lines(switch))
    clients = len(switch["clients"])
    assert f"{clients} of {clients} clients reconnected, first in round 3" in words
    assert "proven: 1 of 1 check passed" in words
    assert any("changed in round 3 (sec3 to sec2)" in note for note in report["notes"])
    assert "3 (sec3, then sec2)" in render_page(report, draw_figures(report))


def test_clients_that_keep_their_connections_are_told_as_that() -> None:
    run, ledger = switched(3, 0.1, RECONNECTING.parent / "net2-sec3")
    switch = build_report(run, ledger, None)["level_switch"]
    assert [one["reconnected_s"] for one in switch["clients"]] == [None] * len(switch["clients"])
    assert "2 clients kept the connection" in " ".join(text for _, text in switch_lines(switch))


def test_a_level_that_never_came_leaves_all_rounds_under_the_first() -> None:
    run, ledger = switched(3, 0.1)
    never = dict.fromkeys(("due_ns", "from_ns", "at_ns", "proven_ns")) | {"proofs": []}
    run = dataclasses.replace(run, meta=run.meta | {"level_switch": run.meta["level_switch"] | never})
    assert problem_in(run.meta) is None
    report = build_report(run, ledger, None)
    assert problems("report", report) == []
    assert {tuple(one["security_levels"]) for one in report["rounds"]} == {("sec3",)}
    assert "sec2 was to be in force from round 3 on, and never was." in report["notes"]


def test_a_run_without_a_switch_is_not_marked() -> None:
    run = load_run(RECONNECTING)
    ledger = build_ledger(run)
    report = build_report(run, ledger, None)
    assert "level_switch" not in report and levels_of_rounds(run, ledger.rounds) == {}
    assert all("security_levels" not in one for one in report["rounds"])


def test_the_dynamic_study_switches_half_of_its_runs() -> None:
    cells = load_study("dynamic", profile_names()).cells
    assert len({cell.name for cell in cells}) == len(cells) == 16
    assert sum(cell.level_switch == LevelSwitch(level=1, round=6) for cell in cells) == 8
    assert "net7-sec0-reconnect-to-sec1-round6" in {cell.name for cell in cells}
    told = {cell.name: cell.as_dict() for cell in cells}
    assert told["net0-sec0-to-sec1-round6"]["level_switch"] == "sec1@round6"
    assert "level_switch" not in told["net0-sec0"]


def test_a_switch_that_a_cell_cannot_have_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("name: x\nrounds: 5\nfactors:\n  level: [0, 1]\n  switch_level: [none, sec1@round3]\n")
    with pytest.raises(UsageError, match=r"plan\.yaml:5: factors\.switch_level: sec1@round3: net0-sec1 has"):
        load_study(str(file), profile_names())
