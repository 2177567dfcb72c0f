"""Runs beside a reference: what is said, how sure, and what a pipeline is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.results.comparison import compare, worse_by
from analysis.results.comparison_text import first_words, human_change
from analysis.results.samples import PARTS, RunGroup, Sample, find_runs, load_group
from tests.unit.recorded_run import RECORDED
from ztprobe.cli import main
from ztprobe.errors import RunDirError

OTHER = RECORDED.with_name("net2-sec3-reconnect")


def group(means_s: list[float], *, rounds: int = 9, spread: float = 0.02, seed: int = 1) -> RunGroup:
    """Runs whose rounds vary by ``spread`` around a mean of their own; two thirds of each are compute."""
    chance = np.random.default_rng(seed)
    samples = []
    for number, mean_s in enumerate(means_s):
        durations = np.rint(1e9 * mean_s * (1 + spread * chance.standard_normal(rounds))).astype(np.int64)
        parts = np.zeros((rounds, len(PARTS)), dtype=np.int64)
        parts[:, 0] = durations
        parts[:, PARTS.index("compute")] = durations * 2 // 3
        parts[:, PARTS.index("residual")] = durations - durations * 2 // 3
        samples.append(Sample(path=Path(f"run{number}"), experiment="net0-sec0", parts_ns=parts))
    return RunGroup(path=Path("runs"), experiment="net0-sec0", samples=tuple(samples))


def only(comparison: dict) -> dict:
    (one,) = comparison["groups"]
    return one


def test_parts_add_up_to_the_round() -> None:
    parts = only(compare([group([1.0, 1.1]), group([2.0, 2.3], seed=2)]))["parts"]
    total = sum(found["delta_s"] for part, found in parts.items() if part != "duration")
    assert total == pytest.approx(parts["duration"]["delta_s"], abs=1e-8)


def test_several_runs_give_welchs_interval() -> None:
    one, other = group([2.0, 2.3, 2.1], seed=2), group([1.0, 1.1])
    found = only(compare([other, one]))["parts"]["duration"]
    edges = stats.ttest_ind(
        one.run_means_ns[:, 0], other.run_means_ns[:, 0], equal_var=False
    ).confidence_interval()
    assert found["ci95"] == pytest.approx([edges.low / 1e9, edges.high / 1e9], abs=1e-8)


def test_a_single_pair_says_that_it_is_one() -> None:
    found = only(compare([group([1.0]), group([1.2], seed=2)]))
    assert (found["unit"], found["parts"]["duration"]["ci95"] is None) == ("rounds", False)
    assert "conditional on this pair" in found["method"]
    low, high = found["parts"]["duration"]["relative_ci95"]
    assert low < 0.2 < high


def test_one_run_against_several_has_no_interval() -> None:
    found = only(compare([group([1.0, 1.1]), group([1.2])]))
    assert found["parts"]["duration"]["ci95"] is None
    assert worse_by(found) is None


def test_machines_of_other_sizes_are_told_of_before_any_number() -> None:
    """Halves of a duet pair beside runs that had the whole machine, say."""

    def on(cpus: int, one: RunGroup) -> RunGroup:
        return replace(one, samples=tuple(replace(sample, cpus=cpus) for sample in one.samples))

    reference, other = group([1.0, 1.1]), group([1.2, 1.3], seed=2)
    compared = compare([on(2, reference), on(1, other)])
    assert [one["cpus"] for one in (compared["reference"], only(compared))] == [[2], [1]]
    (words,) = first_words([compared["reference"], only(compared)])
    assert words.startswith("runs had different numbers of CPUs (net0-sec0 2 and net0-sec0 1): ")
    for same in (compare([on(2, reference), on(2, other)]), compare([reference, other])):
        assert first_words([same["reference"], *same["groups"]]) == []


def test_packets_of_other_sizes_are_told_of_before_any_number() -> None:
    """A study with jitter beside a single run without, say: under net4 BBR takes 40 % more there."""

    def with_offloads(on: bool, one: RunGroup) -> RunGroup:
        return replace(one, samples=tuple(replace(sample, offloads=on) for sample in one.samples))

    reference, other = group([1.0, 1.1]), group([1.2, 1.3], seed=2)
    compared = compare([with_offloads(True, reference), with_offloads(False, other)])
    assert [one["offloads"] for one in (compared["reference"], only(compared))] == [[True], [False]]
    (words,) = first_words([compared["reference"], only(compared)])
    assert "were not alike (net0-sec0 on and net0-sec0 off)" in words
    same = compare([with_offloads(False, reference), with_offloads(False, other)])
    assert first_words([same["reference"], *same["groups"]]) == []


def test_whether_a_runs_packets_were_cut_is_read_from_its_report() -> None:
    (sample,) = load_group(RECORDED).samples
    assert sample.offloads is False  # as run.json's facts have it


def test_a_part_that_nobody_has_differs_by_nothing() -> None:
    found = only(compare([group([1.0, 1.1]), group([1.2, 1.3], seed=2)]))["parts"]["proxy"]
    assert (found["delta_s"], found["ci95"]) == (0, [0, 0])
    assert (found["relative"], found["effect_size"]) == (None, None)


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_intervals_cover_what_differs_between_runs(runs: int) -> None:
    """Truth +20 %: runs vary by 3 % among themselves, rounds by 9 %."""
    chance = np.random.default_rng(7)
    covered = 0
    trials = 600
    for trial in range(trials):
        before = 1 + 0.03 * chance.standard_normal(runs)
        after = 1.2 * (1 + 0.03 * chance.standard_normal(runs))
        sides = [
            group(list(means), spread=0.09, seed=2 * trial + side)
            for side, means in enumerate((before, after))
        ]
        low, high = only(compare(sides))["parts"]["duration"]["ci95"]
        covered += low <= 0.2 <= high
    assert 0.9 <= covered / trials <= 0.97 + (runs == 2) * 0.03  # Welch with two runs is wide


def test_a_directory_of_runs_is_one_group(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(RECORDED, tmp_path / name)
    assert [run.name for run in find_runs(tmp_path)] == ["a", "b"]
    assert len(load_group(tmp_path).samples) == 2
    shutil.copytree(RECORDED / "baseline", tmp_path / "c")
    with pytest.raises(RunDirError, match="holds runs of net0-sec0, net2-sec3; name one directory for each"):
        load_group(tmp_path)


def test_without_a_report_the_run_is_analysed(tmp_path: Path) -> None:
    shutil.copytree(RECORDED, tmp_path / "run")
    (tmp_path / "run" / "report.json").write_text("{")
    (fresh,), (saved,) = (load_group(path).samples for path in (tmp_path / "run", RECORDED))
    assert (fresh.parts_ns == saved.parts_ns).all()


def test_the_command_says_what_differs(capsys, tmp_path: Path) -> None:
    assert main(["compare", str(RECORDED), str(OTHER), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("net2-sec3 (1 run, 2 rounds) against net2-sec3 (1 run, 7 rounds)\n")
    assert max(map(len, shown.splitlines())) <= 110
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert saved["groups"][0]["parts"]["duration"]["delta_s"] != 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<script") == 1 and "http" not in page.replace("http-equiv", "")


def test_a_pipeline_fails_only_beyond_the_interval(capsys, tmp_path: Path) -> None:
    for directory, factor in (("before", 1.0), ("after", 1.5)):
        for name in ("a", "b"):
            run = tmp_path / directory / name
            shutil.copytree(RECORDED, run)
            report = json.loads((run / "report.json").read_text())
            for one in report["rounds"]:
                one["duration_s"] *= factor * (1.01 if name == "b" else 1)
            (run / "report.json").write_text(json.dumps(report))
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    assert main(["compare", before, before, "--fail-above", "5%"]) == 0
    assert main(["compare", before, after, "--fail-above", "5%"]) == 1
    assert "more than --fail-above 5%" in capsys.readouterr().err
    assert main(["compare", before, after, "--fail-above", "80"]) == 0
    assert main(["compare", before, after, "--fail-above", "a lot"]) == 2


@pytest.mark.parametrize("arguments", [["compare", str(RECORDED)], ["compare", "none", "none"]])
def test_what_cannot_be_compared_is_one_line(arguments: list[str], capsys) -> None:
    assert main(arguments) in (2, 4)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_change_is_read_at_a_glance() -> None:
    assert [human_change(share) for share in (None, 0.042, -0.2, 8.5, 150.6)] == [
        "–",
        "+4.2 %",
        "−20.0 %",
        "× 9.5",
        "× 152",
    ]
