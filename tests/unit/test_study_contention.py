"""Runs of a study during which others used the machine: made anew, counted, and not averaged in."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from analysis.results.comparison_text import print_comparison
from analysis.results.samples import load_group
from analysis.results.study import study_report
from analysis.results.study_page import write_study
from analysis.results.study_rounds import read_rounds
from tests.schemas import problems
from tests.unit.test_study import PAIR, Made, made
from ztprobe.cli import main
from ztprobe.errors import WorkloadError
from ztprobe.experiment import requirements
from ztprobe.profile.model import profile_names
from ztprobe.progress import QuietProgress
from ztprobe.study import execution
from ztprobe.study.pairs import run_pairs
from ztprobe.study.plan import load_study

__all__ = ("made",)  # a fixture


def noting(said: list[str]) -> QuietProgress:
    """One whose notes can be read afterwards."""
    progress = QuietProgress()
    progress.note = said.append  # type: ignore[method-assign]
    return progress


def test_a_run_on_a_busy_machine_is_made_anew(made: Made, tmp_path: Path, capsys) -> None:
    made.busy = {2}
    out = tmp_path / "out"
    tally = execution.run_study(dataclasses.replace(PAIR, repetitions=1, retries=0), out, QuietProgress())
    assert (tally.done, tally.failed, tally.attempts) == (2, 0, 3)
    (kept,) = (out / "attempts").glob("*/failure.json")
    failure = json.loads(kept.read_text())
    assert failure["class"] == "contention"
    assert "other processes used 25.0 % of the machine's CPU time" in failure["message"]
    assert (kept.parent / "run.json").exists()  # with all that was seen
    report = study_report(out)
    assert report["failures"] == {"contention": 1}
    assert [group["contended"] for group in report["groups"]] == [0, 0]
    assert main(["report", str(out)]) == 0
    assert "read this first" not in capsys.readouterr().out


def test_a_machine_that_stays_busy_is_told_before_any_number(made: Made, tmp_path: Path, capsys) -> None:
    made.busy = set(range(1, 100))
    out = tmp_path / "out"
    study = dataclasses.replace(PAIR, repetitions=1, retries=0)
    with pytest.raises(WorkloadError, match="others used the machine during 1 pair of 1, so there is no"):
        run_pairs(study, out, QuietProgress())
    assert len(made.names) == 2 * 3  # each run twice more, though nothing failed
    assert not (out / "comparison.json").exists()
    assert main(["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("read this first: others used the machine during 1 of 1 run of ")
    report = json.loads((out / "study-report.json").read_text())
    assert report["reference"] is None  # nothing of a time is told of runs that others spoiled
    assert [(group["complete"], group["median_s"]) for group in report["groups"]] == [(1, None), (1, None)]
    assert "Read this first: others used the machine" in (out / "study.html").read_text()
    runs = [str(out / "runs" / name) for name in ("net0-sec0", "net2-sec3")]
    assert main(["compare", *runs, "--out", str(tmp_path / "compared")]) == 0
    comparison = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    (group,) = comparison["groups"]
    assert (group["contended_runs"], comparison["reference"]["contended_runs"]) == (1, 1)
    assert group["parts"]["duration"]["ci95"] is group["parts"]["duration"]["relative_ci95"] is None
    assert group["parts"]["compute"]["ci95"] is None
    assert "1 of 1 run of net2-sec3 and 1 of 1 run of net0-sec0, which may be the" in group["method"]
    assert capsys.readouterr().out.startswith(
        "read this first: others used the machine during 1 of 1 run of "
    )
    assert main(["compare", *runs, "--fail-above", "5%"]) == 2
    assert "has no interval to judge by" in capsys.readouterr().err


def test_a_pair_that_stays_busy_is_left_out_of_the_pairs(made: Made, tmp_path: Path, capsys) -> None:
    """Of three pairs one run is spoiled in each of its attempts: two pairs are compared."""
    made.busy = {1, 2, 3}
    said: list[str] = []
    out = tmp_path / "out"
    comparison = run_pairs(PAIR, out, noting(said))
    assert len(made.names) == 6 + 2
    assert [comparison[name] for name in ("pairs", "left_out_pairs", "repeated_runs")] == [2, 1, 2]
    (group,) = comparison["groups"]
    sides = (group, comparison["reference"])
    assert [(one["runs"], one["left_out_runs"], one["contended_runs"]) for one in sides] == [(2, 1, 0)] * 2
    assert problems("comparison", comparison) == []
    assert sum("; it is made anew" in line for line in said) == 2
    assert sum("it stays, after 2 repetitions, and is left out" in line for line in said) == 1
    classes = [json.loads(file.read_text())["class"] for file in out.glob("attempts/*/failure.json")]
    assert classes == ["contention"] * 2
    print_comparison(comparison)
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 runs of net2-sec3" in printed and "They are left out of what follows" in printed
    assert "2 pairs compared, 1 left out; 2 runs made anew, as others used the machine meanwhile." in printed


def test_spoiled_runs_of_a_directory_are_not_averaged_in(made: Made, tmp_path: Path) -> None:
    made.busy = {1}
    out = tmp_path / "out"
    execution.run_study(dataclasses.replace(PAIR, contention_retries=0), out, QuietProgress())
    (spoiled,) = {made.names[0]}
    group = load_group(out / "runs" / spoiled)
    assert (len(group.samples), group.left_out, group.contended) == (2, 1, 0)
    assert [load_group(group.samples[0].path).left_out] == [0]


@pytest.mark.filterwarnings("ignore:Precision loss")  # runs are copies of each other
def test_a_reproduction_makes_busy_runs_anew_and_then_leaves_them_out(
    made: Made, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(requirements, "check_machine", lambda _experiments: None)
    before, out = tmp_path / "before", tmp_path / "out"
    execution.run_study(load_study("reproduce", profile_names()), before, QuietProgress())
    write_study(before)
    made.names.clear()
    made.busy = {1, 2}  # the first run, in both of its attempts
    command = ["reproduce", "--against", str(before), "--out", str(out), "-q", "--json"]
    assert main(command) == 1
    found = json.loads(capsys.readouterr().out)
    assert len(made.names) == 8 + 1
    assert (found["runs"], found["contended_runs"], found["repeated_runs"]) == (8, 1, 1)
    assert sum(row["missing"] for row in found["rows"]) in (1, 3)  # 3: it is of net0-sec0
    assert found["reproduced"] is False
    (spoiled,) = found["left_out"]
    shutil.rmtree(out / spoiled)  # as it says
    main(command)
    found = json.loads(capsys.readouterr().out)
    assert len(made.names) == 8 + 1 + 1
    assert (found["runs"], found["left_out"], found["repeated_runs"]) == (8, [], 1)
    assert [row["missing"] for row in found["rows"]] == [0, 0, 0]


def test_a_run_that_stays_busy_is_counted_and_not_averaged_in(made: Made, tmp_path: Path, capsys) -> None:
    made.busy = {1}
    out = tmp_path / "out"
    study = dataclasses.replace(PAIR, contention_retries=0)
    execution.run_study(study, out, QuietProgress())
    report = study_report(out)
    spoiled, quiet = sorted(report["groups"], key=lambda group: -group["contended"])
    assert (spoiled["complete"], spoiled["contended"], spoiled["rounds"]) == (3, 1, 14)
    assert (quiet["complete"], quiet["contended"], quiet["rounds"]) == (3, 0, 21)
    (cell,) = (one for one in report["cells"] if one["contended"])
    assert len(cell["accuracy"]) == len(cell["time_to_target_s"]) == 2
    overheads = [group["overhead"] for group in report["groups"] if group["overhead"]]
    assert [one["contended_runs"] for one in overheads] == [0]
    assert all(one["parts"]["duration"]["ci95"] for one in overheads)
    assert report["effects"]["runs"] == 5
    assert "Others used the machine during 1 of 6 runs" in report["effects"]["said"][-1]
    assert [row["rounds"] for row in report["outcomes"]] == [group["rounds"] for group in report["groups"]]
    assert {row["client"]: row["runs"] for row in spoiled["slack"]} == {
        f"fl-client-{number}": 2 for number in range(len(spoiled["slack"]))
    }
    assert main(["report", str(out)]) == 0
    assert "They are left out of every time, overhead and effect below" in " ".join(
        capsys.readouterr().out.split()
    )
    rounds = read_rounds(out / "study-rounds.parquet").frame  # whoever reads it may still tell them apart
    assert rounds.groupby("contended").size().to_dict() == {False: 35, True: 7}
    assert rounds["commit"].str.fullmatch(r"[0-9a-f]{12}(-dirty)?|not recorded").all()
    assert rounds["machine"].str.match(r"[1-9][0-9]* CPU").all()
