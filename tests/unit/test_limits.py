"""Limits: the search for a threshold, what is tried, what is kept of it and what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.results.limits_text import print_limits
from tests.unit.recorded_run import RECORDED
from ztprobe.cli import main
from ztprobe.errors import EnforcementError, RunDirError, UsageError, WorkloadError
from ztprobe.experiment.names import Experiment
from ztprobe.progress import QuietProgress
from ztprobe.study import limits
from ztprobe.study.limits import Search, run_search
from ztprobe.study.threshold import AXES, find_threshold


def search_of(vary: str = "delay", **changes: object) -> Search:
    values = {
        "experiment": Experiment(profile="net0", level=0),
        "precision": 0.1,
        "rounds": 7,
        "clients": 5,
        "round_deadline_s": 60.0,
        "confirmations": 1,
    }
    ends = {"easiest": None, "hardest": None}
    known = values | ends | changes
    return Search.of_axis(vary, known.pop("easiest"), known.pop("hardest"), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vary", "easiest", "hardest", "truth"),
    [
        ("delay", 10, 20_000, 1234.0),
        ("loss", 0, 90, 47.5),
        ("rate", 100, 0.01, 0.3),
        ("delay", 10, 20_000, 11.0),
    ],
)
def test_a_threshold_lies_between_its_two_sides(
    vary: str, easiest: float, hardest: float, truth: float
) -> None:
    tried: list[float] = []
    harder_is_more = hardest > easiest

    def works(value: float) -> bool:
        tried.append(value)
        return value < truth if harder_is_more else value > truth

    found = find_threshold(AXES[vary], easiest, hardest, 0.1, works)
    assert found.works is not None and found.fails is not None
    assert min(found.works, found.fails) <= truth <= max(found.works, found.fails)
    assert abs(found.works - found.fails) <= 0.1 * max(found.works, found.fails)
    assert len(tried) == len(set(tried)) <= 12


def test_whole_values_are_tried_one_by_one() -> None:
    found = find_threshold(AXES["clients-missing"], 0, 5, 0.1, lambda missing: missing <= 3)
    assert (found.works, found.fails) == (3, 4)


def test_a_threshold_beyond_the_ends_is_none() -> None:
    axis = AXES["delay"]
    assert find_threshold(axis, 10, 100, 0.1, lambda _: True).fails is None
    found = find_threshold(axis, 10, 100, 0.1, lambda _: False)
    assert (found.works, found.fails) == (None, 10)


def test_a_search_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing lies between"):
        search_of(easiest=50, hardest=50)
    with pytest.raises(UsageError, match="changes over time"):
        search_of(experiment=Experiment(profile="net7", level=0))
    with pytest.raises(UsageError, match="needs at least 2"):
        search_of("clients-missing", clients=1)
    with pytest.raises(UsageError, match="delay 5 ms under net2: jitter_ms: expected at most delay_ms"):
        search_of(experiment=Experiment(profile="net2", level=0), easiest=5)


class Made:
    """Runs without a machine: a recorded one wherever a delay is below the truth."""

    def __init__(self, truth_ms: float) -> None:
        self.truth_ms = truth_ms
        self.delays_ms: list[float] = []
        self.error: type[WorkloadError | EnforcementError] = WorkloadError

    def job(self, spec, directory, progress, *, interference=None):  # type: ignore[no-untyped-def]
        made = self

        class Job:
            def run(self) -> None:
                delay_ms = spec.profile.delay_ms
                made.delays_ms.append(delay_ms)
                if delay_ms >= made.truth_ms:
                    raise made.error(f"round 1: 0 of 5 updates came under {delay_ms:g} ms")
                for name in ("events", "logs"):
                    shutil.rmtree(directory.path / name, ignore_errors=True)
                shutil.copytree(RECORDED, directory.path, dirs_exist_ok=True)

        return Job()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    runs = Made(100.0)
    monkeypatch.setattr(limits, "Job", runs.job)
    monkeypatch.setattr(limits, "clean_leftovers", list)
    return runs


def test_both_sides_are_run_again_and_nothing_twice(made: Made, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    report = run_search(search_of(), out, QuietProgress())
    assert 90 <= report["works"] < 100 <= report["fails"] <= 110
    at = {
        value: [one["seed"] for one in report["tries"] if one["value"] == value] for value in made.delays_ms
    }
    assert at[report["works"]] == at[report["fails"]] == [0, 1]
    assert json.loads((out / "limits-report.json").read_text()) == report
    before = len(made.delays_ms)
    assert run_search(search_of(), out, QuietProgress()) == report
    assert len(made.delays_ms) == before
    with pytest.raises(RunDirError, match="holds a search of another plan"):
        run_search(search_of(rounds=3), out, QuietProgress())
    print_limits(report)
    shown = capsys.readouterr().out
    assert f"It works at {report['works']:g} ms and fails at {report['fails']:g} ms of delay." in shown
    assert "What breaks first: round 1: 0 of 5 updates came" in shown
    assert "compute" in shown


def test_what_cannot_be_proven_is_not_the_deployments_failure(made: Made, tmp_path: Path, capsys) -> None:
    made.error = EnforcementError
    report = run_search(search_of(confirmations=0), tmp_path / "out", QuietProgress())
    outcomes = {one["outcome"] for one in report["tries"] if one["value"] >= 100}
    assert outcomes == {"not in force"}
    print_limits(report)
    assert "its limit, not yours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["limits"], "--vary"),
        (["limits", "--vary", "weather"], "clients-missing"),
        (["limits", "--vary", "delay", "--from", "9", "--to", "9"], "nothing lies between them"),
        (["limits", "--vary", "loss", "--to", "120"], "loss 120: expected at most 100"),
        (["limits", "--vary", "clients-missing", "--to", "6"], "expected at most 5"),
        (["limits", "--vary", "delay", "--precision", "fine"], "such as 5%"),
        (["limits", "--vary", "delay", "--experiment", "net9-sec0"], "no network profile net9"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], expected: str, capsys) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and expected in said
