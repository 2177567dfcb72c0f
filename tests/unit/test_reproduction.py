"""Reproductions: what a study predicts, whether that covers, and what is said of runs held against it."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.results import reproduction, study_rounds
from analysis.results.reproduction_text import draw_reproduction, print_reproduction
from analysis.results.samples import PARTS
from analysis.results.study_rounds import StudyRounds, read_rounds, rounds_parquet
from tests.schemas import problems
from ztprobe.cli import main
from ztprobe.errors import RunDirError
from ztprobe.profile.model import profile_names
from ztprobe.study.plan import load_study

LIKE: dict[str, Any] = {
    "distribution": "iid",
    "clients": 5,
    "reconnect": False,
    "congestion_control": "cubic",
}
LIKE |= {"level_switch": "none", "options": ""}
GROUPS = ["net0-sec3", "net2-sec0", "net2-sec3"]
CONDITIONS = {"kernel": "6.18", "backend": "netem", "machine": "2 CPUs", "commit": "0123456789ab"}
CONDITIONS |= {"started": "2026-11-29T01:02:03Z"}
FACTORS = {"net0-sec0": 1.0, "net0-sec3": 1.2, "net2-sec0": 3.0, "net2-sec3": 4.0}


def rounds_of(
    seeds: range, *, by: dict[str, float] | None = None, chance: int = 1, study: str = "paper-80"
) -> StudyRounds:
    """Runs of 19 counted rounds; medians differ by 3 % between runs, rounds by 9 %."""
    random = np.random.default_rng(chance)
    tables = []
    for group, factor in FACTORS.items():
        for seed in seeds:
            run_s = 2 * factor * (by or {}).get(group, 1.0) * math.exp(0.03 * random.standard_normal())
            durations_s = run_s * np.exp(0.09 * random.standard_normal(19))
            parts = {f"{part}_s": 0.0 for part in PARTS} | {"duration_s": durations_s}
            profile, level = group.split("-sec")
            row: dict[str, Any] = {"cell": f"{group}-s{seed}", "profile": profile, "level": int(level)}
            row |= LIKE | {"seed": seed, "repetition": 1, "contended": False, "round": range(2, 21)}
            tables.append(pd.DataFrame(row | CONDITIONS | parts))
    tally = {"planned": len(seeds), "complete": len(seeds), "contended": 0, "attempts": len(seeds)}
    frame = pd.concat(tables, ignore_index=True)
    return StudyRounds(study=study, rounds_planned=20, frame=frame, groups=dict.fromkeys(FACTORS, tally))


def judged(recorded: StudyRounds, new: StudyRounds) -> dict[str, Any]:
    return reproduction.reproduction_of(recorded, new, LIKE, GROUPS, 2)


def printed(found: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_reproduction(found, stream)
    return stream.getvalue()


def test_the_interval_is_students_for_a_mean_of_new_values() -> None:
    values = [0.10, 0.14, 0.09, 0.12, 0.13]
    low, high = reproduction.prediction_interval(values, 2)
    half = stats.t(4).ppf(0.975) * np.std(values, ddof=1) * math.sqrt(1 / 5 + 1 / 2)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half))


@pytest.mark.parametrize(("before", "after"), [(2, 2), (5, 2), (5, 1)])
def test_ninety_five_of_a_hundred_new_means_are_inside(before: int, after: int) -> None:
    random = np.random.default_rng(7)
    inside = 0
    for _ in range(1500):
        low, high = reproduction.prediction_interval(random.normal(0.2, 0.05, before).tolist(), after)
        inside += low <= random.normal(0.2, 0.05, after).mean() <= high
    assert 0.935 <= inside / 1500 <= 0.965


def test_whole_reproductions_are_inside_as_often_as_intervals_say() -> None:
    """From rounds on: medians, ratios by seed and their logarithms included."""
    inside = [
        row["inside"]
        for chance in range(120)
        for row in judged(rounds_of(range(5), chance=chance), rounds_of(range(2), chance=1000 + chance))[
            "rows"
        ]
    ]
    assert 0.91 <= np.mean(inside) <= 0.985


def test_runs_of_the_same_machine_reproduce_and_slower_proxies_do_not() -> None:
    same = judged(rounds_of(range(5)), rounds_of(range(2), chance=2))
    assert same["reproduced"] is True
    assert [row["inside"] for row in same["rows"]] == [True] * 3
    assert printed(same).count("inside") == 4 and "Reproduced: 3 of 3 ratios" in printed(same)
    slower = judged(rounds_of(range(5)), rounds_of(range(2), by={"net0-sec3": 1.5}, chance=2))
    assert slower["reproduced"] is False
    assert [row["inside"] for row in slower["rows"]] == [False, True, True]
    assert "OUTSIDE" in printed(slower) and "Not reproduced: 2 of 3 ratios" in printed(slower)
    assert max(map(len, printed(slower).splitlines())) <= 100
    assert draw_reproduction(slower) == draw_reproduction(slower) != draw_reproduction(same)


def test_a_machine_that_is_slower_throughout_has_the_same_ratios() -> None:
    everywhere = dict.fromkeys(FACTORS, 7.0)
    found = judged(rounds_of(range(5)), rounds_of(range(2), by=everywhere, chance=2))
    assert found["rows"] == judged(rounds_of(range(5)), rounds_of(range(2), chance=2))["rows"]


def test_a_run_that_is_missing_reproduces_nothing() -> None:
    new = rounds_of(range(2), chance=2)
    frame = new.frame[new.frame["cell"] != "net2-sec3-s1"]
    found = judged(rounds_of(range(5)), dataclasses.replace(new, frame=frame))
    assert found["reproduced"] is False
    assert [(row["missing"], row["inside"]) for row in found["rows"]] == [(0, True), (0, True), (1, None)]
    assert "1 quiet run missing" in printed(found)
    none_s = new.frame[new.frame["profile"] != "net2"]
    (_, _, last) = judged(rounds_of(range(5)), dataclasses.replace(new, frame=none_s))["rows"]
    assert (last["missing"], last["seen_ratio"], last["interval95"]) == (2, None, None)


def test_contended_runs_do_not_enter_and_new_ones_are_told_first() -> None:
    recorded = rounds_of(range(5))
    spoiled = recorded.frame.copy()
    busy = spoiled["cell"].str.endswith("-s3")
    spoiled.loc[busy & (spoiled["profile"] == "net2"), "duration_s"] *= 10
    spoiled.loc[busy, "contended"] = True
    new = rounds_of(range(2), chance=2)
    noisy = new.frame.assign(contended=new.frame["cell"] == "net0-sec0-s0")
    found = judged(dataclasses.replace(recorded, frame=spoiled), dataclasses.replace(new, frame=noisy))
    assert [len(row["recorded_ratios"]) for row in found["rows"]] == [4, 4, 4]
    assert max(row["recorded_ratio"] for row in found["rows"]) < 5
    assert (found["contended_runs"], found["left_out"]) == (1, ["runs/net0-sec0-s0/r01"])
    assert [(row["missing"], row["inside"]) for row in found["rows"]] == [(1, None)] * 3
    assert [list(row["seen_ratios"]) for row in found["rows"]] == [["s1-r1"]] * 3
    assert found["reproduced"] is False
    said = " ".join(printed(found).split())
    assert said.startswith("read this first: others used the machine during 1 of 8 runs, which are left out")
    assert "delete runs/net0-sec0-s0/r01 and start again" in said and "1 quiet run missing" in said
    assert problems("reproduction", found) == []


def test_runs_that_were_made_anew_are_told_and_reproduce_like_others() -> None:
    recorded, new = rounds_of(range(5)), rounds_of(range(2), chance=2)
    found = reproduction.reproduction_of(recorded, new, LIKE, GROUPS, 2, repeated=3)
    assert found["reproduced"] is True
    assert printed(found).startswith("3 runs made anew, as others used the machine meanwhile")


def test_runs_with_options_of_the_workload_are_other_runs() -> None:
    recorded = rounds_of(range(5))
    dearer = recorded.frame.assign(options="compression-int8")
    dearer.loc[dearer["profile"] == "net2", "duration_s"] *= 10
    both = dataclasses.replace(recorded, frame=pd.concat([recorded.frame, dearer], ignore_index=True))
    new = rounds_of(range(2), chance=2)
    assert judged(both, new)["rows"] == judged(recorded, new)["rows"]


def test_a_study_of_one_seed_lets_nothing_be_held_against_it() -> None:
    with pytest.raises(RunDirError, match="has 1 pair of quiet runs of net0-sec3 and net0-sec0") as raised:
        reproduction.check_enough(rounds_of(range(1)), LIKE, GROUPS)
    assert "\n" not in str(raised.value)
    with pytest.raises(RunDirError, match="has 0 pairs"):
        reproduction.check_enough(rounds_of(range(5)), LIKE | {"distribution": "noniid"}, GROUPS)
    reproduction.check_enough(rounds_of(range(2)), LIKE, GROUPS)


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    written = rounds_of(range(2))
    content = rounds_parquet(written)
    assert content == rounds_parquet(written)
    (tmp_path / "a.parquet").write_bytes(content)
    read = read_rounds(tmp_path / "a.parquet")
    assert (read.study, read.rounds_planned, read.dataset) == ("paper-80", 20, "digits")
    assert read.groups == written.groups
    pd.testing.assert_frame_equal(read.frame, written.frame, check_dtype=False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda frame: frame.drop(columns="seed"),
        lambda frame: frame.assign(level="0"),
        lambda frame: frame.assign(duration_s=-1.0),
        lambda frame: frame.assign(profile=5),
        lambda frame: frame.assign(contended="no"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: Any) -> None:
    file = tmp_path / "a.parquet"
    rounds = rounds_of(range(2))
    file.write_bytes(rounds_parquet(dataclasses.replace(rounds, frame=damage(rounds.frame))))
    with pytest.raises(RunDirError, match=r"a\.parquet: ") as raised:
        read_rounds(file)
    assert "\n" not in str(raised.value)


def test_what_is_no_such_file_is_one_line(tmp_path: Path) -> None:
    for content in (b"", b"PAR1", rounds_of(range(1)).frame.to_parquet()):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(RunDirError, match="is no study-rounds"):
            read_rounds(tmp_path / "a.parquet")


def test_without_a_record_it_says_what_is_missing_and_runs_nothing(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(study_rounds, "RECORDS_DIR", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce"]) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "records/paper-80.parquet is missing" in said and "ztprobe sweep paper-80" in said
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    assert main(["reproduce", "--against", "study"]) == 4
    assert "`ztprobe report study` writes it" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]


def test_the_plan_has_two_networks_two_levels_and_two_seeds() -> None:
    experiments = [cell.experiment for cell in load_study("reproduce", profile_names()).cells]
    assert {(one.profile, one.level, one.seed) for one in experiments} == {
        (profile, level, seed) for profile in ("net0", "net2") for level in (0, 3) for seed in (0, 1)
    }
