"""Studies: what is planned, what is left to do, what is kept of what failed, and what all runs say."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.results.quantiles import MIN_ROUNDS_FOR_P99_INTERVAL, quantile_interval_ns
from analysis.results.study import study_report
from analysis.results.study_rounds import read_rounds
from tests.unit.recorded_run import RECORDED
from ztprobe import paths
from ztprobe.cli import main
from ztprobe.errors import EnforcementError, RunDirError, UsageError, WorkloadError
from ztprobe.experiment.names import Experiment
from ztprobe.profile.model import profile_names
from ztprobe.progress import QuietProgress
from ztprobe.rundir.claim import LOCK
from ztprobe.rundir.store import RunDir
from ztprobe.runtime.interface import Enforcement, NotProven, Proof
from ztprobe.study import execution, run_maker
from ztprobe.study.pairs import run_pairs
from ztprobe.study.plan import Cell, Study, load_study, plan_names

PAIR = Study(
    name="pair",
    rounds=7,
    cells=tuple(Cell(experiment=Experiment(profile=p, level=s)) for p, s in (("net0", 0), ("net2", 3))),
    repetitions=3,
    retries=1,
)


@pytest.mark.parametrize("name", plan_names())
def test_plans_that_come_with_ztprobe_can_be_loaded(name: str) -> None:
    study = load_study(name, profile_names())
    assert study.name == name
    directories = [planned.directory for planned in study.runs()]
    assert len(set(directories)) == len(directories) == len(study.cells) * study.repetitions


def test_the_published_study_has_eighty_cells() -> None:
    cells = load_study("paper-80", profile_names()).cells
    assert len(cells) == 80
    per_group = Counter((cell.experiment.profile, cell.experiment.level) for cell in cells)
    assert set(per_group.values()) == {10} and len(per_group) == 8


def test_every_block_holds_every_cell_in_an_order_of_its_own() -> None:
    study = load_study("paper-80", profile_names())
    first, second = ([planned.cell for planned in study.block(n)] for n in (1, 2))
    assert set(first) == set(second) == set(study.cells)
    assert first != second
    assert first == [planned.cell for planned in study.block(1)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "is not YAML"),
        ("root:x:0:0", "expected a mapping of a plan's keys"),
        ("name: x\nname: y", "plan.yaml:2: key 'name' is given twice"),
        ("a: &a [1]\nname: x\n---\nname: y", "expected one plan, found 2"),
        ("- 1", "expected a mapping of a plan's keys"),
        ("name: x\nrounds: 3", "'factors' is a required property"),
        ("name: x\nrounds: 0\nfactors: {level: [0]}", "rounds: 0 is less than the minimum"),
        ("name: x\nrounds: 3\nfactors: {level: [4]}", "factors.level.0: 4 is not one of"),
        (
            "name: x\nrounds: 3\nfactors: {profile: [net99]}",
            "plan.yaml:3: factors.profile: 'net99' is no network profile; there are net0",
        ),
        ("name: ../x\nrounds: 3\nfactors: {level: [0]}", "name: "),
        ("name: x\nrounds: 3\nclients: 2\nfactors: {clients: [2]}", "is a factor and a fixed number"),
        ("name: x\nrounds: 3\nfactors: {weather: [1]}", "weather"),
    ],
)
def test_a_wrong_plan_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(UsageError, match=problem.replace("[", r"\[")) as raised:
        load_study(str(tmp_path / "plan.yaml"), profile_names())
    assert "\n" not in str(raised.value)


@dataclass
class Made:
    """The experiments that were run, in order, and how the n-th (from 1) is to end instead."""

    names: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)  # of the workload, of each of them
    failing: dict[int, BaseException] = field(default_factory=dict)
    busy: set[int] = field(default_factory=set)  # those during which others use the machine
    runtime: str = "local"  # that they say they were made by


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    """Runs are copies of a recorded one."""
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    made = Made()

    class Copied:
        def __init__(self, spec: Any, target: Any, _progress: Any, **_more: Any) -> None:
            self.name, self.path = spec.experiment.name, target.path
            self.options = dict(spec.options.fl)
            self.run_id = f"{len(made.names):06x}"
            self.meta = {"facts": {"node": "node-a"}}

        def run(self) -> None:
            made.names.append(self.name)
            made.options.append(self.options)
            (self.path / "logs" / "server.log").write_text("as it is")
            if (failure := made.failing.get(len(made.names))) is not None:
                raise failure
            source = RECORDED if self.name == "net2-sec3" else RECORDED / "baseline"
            for file in ("rounds.jsonl", "clients.jsonl", "run.json"):
                shutil.copy(source / file, self.path / file)
            shutil.copytree(source / "events", self.path / "events", dirs_exist_ok=True)
            if made.runtime != "local":
                told = json.loads((self.path / "run.json").read_text()) | {"runtime": made.runtime}
                told.pop("digests", None)
                (self.path / "run.json").write_text(json.dumps(told))
            if len(made.names) in made.busy:
                busy_machine(self.path)

    monkeypatch.setattr(run_maker, "Job", Copied)
    return made


def test_an_interrupted_study_goes_on_without_repeating_a_run(made: Made, tmp_path: Path) -> None:
    made.failing[3] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        execution.run_study(PAIR, tmp_path / "out", QuietProgress())
    first = list(made.names)
    made.failing.clear()
    tally = execution.run_study(PAIR, tmp_path / "out", QuietProgress())
    assert (tally.there, tally.done, tally.failed) == (2, 4, 0)
    assert Counter(made.names) == Counter({"net0-sec0": 3, "net2-sec3": 3}) + Counter(first[2:])
    there = sorted(file.parent for file in (tmp_path / "out").glob("runs/*/*/run.json"))
    assert there == sorted(tmp_path / "out" / planned.directory for planned in PAIR.runs())
    assert not list((tmp_path / "out").rglob("*partial*"))


def test_failed_attempts_are_kept_with_their_class(made: Made, tmp_path: Path) -> None:
    made.failing |= {
        1: WorkloadError("a pod died"),
        2: EnforcementError("no policy"),
        4: WorkloadError("again"),
    }
    tally = execution.run_study(PAIR, tmp_path / "out", QuietProgress())
    assert (tally.done, tally.failed, tally.attempts) == (5, 1, 8)
    attempts = tmp_path / "out" / "attempts"
    found = {file.parent.name: json.loads(file.read_text()) for file in attempts.glob("*/failure.json")}
    assert sorted(one["class"] for one in found.values()) == ["not in force", "workload", "workload"]
    assert {file.read_text() for file in attempts.glob("*/logs/server.log")} == {"as it is"}
    assert study_report(tmp_path / "out")["failures"] == {"workload": 2, "not in force": 1}


def test_a_control_that_is_not_in_force_is_a_class_with_what_was_tried(made: Made, tmp_path: Path) -> None:
    proof = Proof(name="forbidden: a -> b", expected="no connection", observed="connected", passed=False)
    enforcement = Enforcement(network_policy_expected=True, mtls_expected=False, network_policy=(proof,))
    made.failing = {1: NotProven(enforcement)}
    study = dataclasses.replace(PAIR, repetitions=1, retries=0)
    tally = execution.run_study(study, tmp_path / "out", QuietProgress())
    assert (tally.done, tally.failed) == (1, 1)
    (kept,) = (tmp_path / "out" / "attempts").glob("*/failure.json")
    failure = json.loads(kept.read_text())
    assert failure["class"] == "not in force"
    assert failure["message"] == "not in force: forbidden: a -> b: expected no connection, observed connected"


def test_what_is_no_failure_of_a_run_ends_the_study(made: Made, tmp_path: Path) -> None:
    made.failing[2] = UsageError("the manifests are wrong")
    with pytest.raises(UsageError):
        execution.run_study(PAIR, tmp_path / "out", QuietProgress())
    assert len(made.names) == 2
    assert not (tmp_path / "out" / "attempts").exists()


def test_a_study_keeps_to_its_plan_and_to_itself(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    execution.run_study(PAIR, out, QuietProgress())
    other = Study(name="pair", rounds=8, cells=PAIR.cells)
    with pytest.raises(RunDirError, match="another plan"):
        execution.run_study(other, out, QuietProgress())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RunDirError, match="no study"):
        execution.run_study(PAIR, tmp_path / "full", QuietProgress())
    handle = os.open(out / LOCK, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(RunDirError, match="another ztprobe"):
        execution.run_study(PAIR, out, QuietProgress())
    os.close(handle)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    # Whoever may read the directory may lock the directory, and holds nobody up with that.
    assert stat.S_IMODE((out / LOCK).stat().st_mode) == 0o600
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert execution.run_study(PAIR, out, QuietProgress()).there == 6
    os.close(handle)
    (out / "study.json").unlink()
    os.mkfifo(out / "study.json")
    with pytest.raises(RunDirError, match=r"study\.json: is a FIFO, expected a regular file"):
        execution.run_study(PAIR, out, QuietProgress())


def busy_machine(run: Path) -> None:
    """A record in which other processes used a quarter of the machine's CPU time."""
    events = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    times_ns = [one["time_monotonic_ns"] for one in events]
    begin_ns, end_ns = min(times_ns) - 10**9, max(times_ns) + 10**9
    meta = json.loads((run / "run.json").read_text())
    cpus = meta["cores"]
    edges = np.arange(begin_ns, end_ns, 250_000_000, dtype=np.int64)
    table = pd.DataFrame({"from_ns": edges[:-1], "to_ns": edges[1:]})
    table["foreign_ns"] = (table["to_ns"] - table["from_ns"]) * cpus // 4
    table["steal_ns"] = np.int64(0)
    meta.pop("digests", None)
    meta["table_rows"] = meta.get("table_rows", {}) | {"machine": len(table)}
    meta["machine_load"] = {"cpus": cpus}
    RunDir(run).write_events("machine", table)
    (run / "run.json").write_text(json.dumps(meta))


def test_pairs_are_compared_pair_by_pair(made: Made, tmp_path: Path) -> None:
    comparison = run_pairs(PAIR, tmp_path / "out", QuietProgress())
    assert (comparison["pairs"], comparison["reference"]["experiment"]) == (3, "net0-sec0")
    (group,) = comparison["groups"]
    assert "pairs" in group["method"]
    low, high = group["parts"]["duration"]["ci95"]
    assert low == high == group["parts"]["duration"]["delta_s"]  # three equal pairs


def test_pairs_stop_when_the_interval_is_narrow_enough(made: Made, tmp_path: Path) -> None:
    study = Study(name="pair", rounds=7, cells=PAIR.cells, repetitions=9)
    comparison = run_pairs(study, tmp_path / "out", QuietProgress(), until=0.05)
    assert (comparison["pairs"], comparison["stopped_at"], len(made.names)) == (3, 0.05, 6)


def test_pairs_that_are_not_complete_do_not_count(made: Made, tmp_path: Path) -> None:
    study = Study(name="pair", rounds=7, cells=PAIR.cells, repetitions=2)
    made.failing[3] = WorkloadError("a pod died")
    assert run_pairs(study, tmp_path / "out", QuietProgress())["pairs"] == 1


def test_the_report_has_success_times_and_overhead(made: Made, tmp_path: Path) -> None:
    execution.run_study(PAIR, tmp_path / "out", QuietProgress())
    report = study_report(tmp_path / "out")
    by_name = {group["name"]: group for group in report["groups"]}
    assert {name: (group["complete"], group["attempts"]) for name, group in by_name.items()} == {
        "net0-sec0": (3, 3),
        "net2-sec3": (3, 3),
    }
    assert report["reference"] == "net0-sec0"
    assert by_name["net0-sec0"]["overhead"] is None
    saved = json.loads((RECORDED / "report.json").read_text())
    parts = by_name["net2-sec3"]["overhead"]["parts"]
    assert parts["duration"]["delta_s"] == pytest.approx(saved["overhead"]["duration"]["delta_s"])
    assert by_name["net2-sec3"]["p99_s"] is None


def test_a_study_has_a_page_tables_and_figures(made: Made, tmp_path: Path, capsys) -> None:
    made.failing[3] = WorkloadError("a pod <b>died</b>")
    out = tmp_path / "out"
    execution.run_study(PAIR, out, QuietProgress())
    assert main(["report", str(out)]) == 0
    assert f"page: {out / 'study.html'}" in capsys.readouterr().out
    written = {name: (out / name).read_bytes() for name in ("study-report.json", "study.html", "study.csv")}
    assert main(["report", str(out)]) == 0
    assert written == {name: (out / name).read_bytes() for name in written}  # the same bytes again
    report = json.loads(written["study-report.json"])
    assert report["completion"] == [
        {"factor": f, "value": v, "complete": 3, "planned": 3, "failed_attempts": report_failures}
        for f, v, report_failures in (
            ("profile", "net0", failures_of(report, "net0-sec0")),
            ("profile", "net2", failures_of(report, "net2-sec3")),
            ("level", "0", failures_of(report, "net0-sec0")),
            ("level", "3", failures_of(report, "net2-sec3")),
        )
    ]
    assert sum(row["failed_attempts"] for row in report["completion"]) == 2  # one, by both factors
    frame = pd.read_csv(out / "study.csv").set_index("group")
    overhead = frame.filter(regex="^overhead_").loc["net2-sec3"]
    parts = overhead.drop("overhead_duration_s")
    assert parts.sum() == pytest.approx(overhead["overhead_duration_s"], abs=1e-6)
    assert frame.loc["net0-sec0", "median_s"] == pytest.approx(
        float(np.median(next(g["durations_s"] for g in report["groups"] if g["name"] == "net0-sec0")))
    )
    page = written["study.html"].decode()
    assert page.count("<svg") == len(list((out / "figures").glob("*.svg"))) == 9
    assert "Additive or not cannot be said" in page  # the two cells differ in everything at once
    assert pd.read_csv(out / "study-effects.csv").empty
    slack = pd.read_csv(out / "study-slack.csv").set_index(["group", "client"])
    assert slack.loc["net2-sec3", "decided"].sum() == pytest.approx(1)
    assert page.count("<script") == 1 and "http" not in page.replace("http-equiv", "")


def test_a_study_of_eight_runs_says_what_factors_do_together(made: Made, tmp_path: Path) -> None:
    """All runs are the same but for net2-sec3, so that all that is dear is dear together."""
    out = tmp_path / "out"
    execution.run_study(load_study("smoke", profile_names()), out, QuietProgress())
    assert main(["report", str(out)]) == 0
    page = (out / "study.html").read_text()
    assert "mTLS under net0, and what is more of it in mTLS × net2" in page
    assert "Noise is told by 1 degree of freedom alone" in page
    rounds = read_rounds(out / "study-rounds.parquet")
    assert (rounds.study, rounds.rounds_planned, rounds.frame["cell"].nunique()) == ("smoke", 3, 8)
    medians = rounds.frame.groupby("cell")["duration_s"].median()
    told = {
        group["name"]: group["median_s"]
        for group in json.loads((out / "study-report.json").read_text())["groups"]
    }
    assert medians.to_dict() == pytest.approx(told)
    assert set(rounds.frame["round"]) == set(range(2, 9))
    pd.testing.assert_frame_equal(
        pd.read_parquet(out / "study.parquet"), pd.read_csv(out / "study.csv"), check_dtype=False
    )
    assert {"study-effects.tex", "study-slack.tex"} <= {file.name for file in out.iterdir()}
    assert (out / "figures" / "effects.svg").is_file()
    effects = pd.read_csv(out / "study-effects.csv").set_index(["part", "scale", "effect"])
    saved = json.loads((RECORDED / "report.json").read_text())
    # One cell of eight is dearer: half of that for each pair of factors, with the third one averaged over.
    expected = saved["overhead"]["duration"]["delta_s"] / 2
    assert effects.loc[("duration", "linear", "mTLS × net2"), "estimate"] == pytest.approx(expected)
    assert effects.loc[("duration", "linear", "mTLS × net2"), "degrees"] == 1


def test_the_study_for_predictions_has_each_cell_under_a_name_of_its_own() -> None:
    cells = load_study("whatif-check", profile_names()).cells
    assert len({cell.name for cell in cells}) == len(cells) == 24
    assert "net4-sec3-reconnect-bbr" in {cell.name for cell in cells}


def failures_of(report: dict[str, Any], group: str) -> int:
    return sum(len(cell["failures"]) for cell in report["cells"] if cell["group"] == group)


def test_a_study_is_reported_alone(made: Made, tmp_path: Path, capsys) -> None:
    execution.run_study(PAIR, tmp_path / "out", QuietProgress())
    assert main(["report", str(tmp_path / "out"), str(RECORDED)]) == 2
    assert "a study is reported alone" in capsys.readouterr().err


def test_a_p99_interval_needs_rounds_enough() -> None:
    """The largest of so many values lies above the true p99 in all but 2.5 % of cases."""
    assert pytest.approx(0.025, rel=1e-3) == 0.99**MIN_ROUNDS_FOR_P99_INTERVAL


def test_a_study_without_a_run_is_one_line(tmp_path: Path, capsys) -> None:
    with pytest.raises(RunDirError, match="is no study"):
        study_report(tmp_path)
    assert main(["sweep", "nothing-of-this-name"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_cluster_bootstrap_covers_a_median_that_runs_differ_in() -> None:
    """Runs differ by 5 %, rounds by 9 %: the interval over whole runs covers, one over rounds would not."""
    chance = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        means = 1 + 0.05 * chance.standard_normal(10)
        rounds = [np.rint(1e9 * mean * (1 + 0.09 * chance.standard_normal(19))).astype(int) for mean in means]
        low, high = quantile_interval_ns(rounds, 50) or (0, 0)
        covered += low <= 1e9 <= high
    assert 0.86 <= covered / 200 <= 0.98
