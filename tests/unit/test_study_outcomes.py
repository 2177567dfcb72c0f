"""What came of a study's runs by data distribution, and how accuracy grew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.ledger.model import COMPONENTS
from analysis.results.samples import PARTS, Sample
from analysis.results.study_outcome_figures import draw_outcomes
from analysis.results.study_outcomes import completion_frame, convergence_of, outcomes_frame, outcomes_of


def cell(group: str, distribution: str, seed: int, **more: Any) -> dict[str, Any]:
    profile, level = group.split("-sec")
    parts = np.zeros((19, len(PARTS)), dtype=np.int64)
    parts[:, 0] = parts[:, 1 + list(COMPONENTS).index("compute")] = np.arange(1, 20) * 10**8
    return {
        "name": f"{group}-{distribution}-s{seed}",
        "group": group,
        "variant": "",
        "profile": profile,
        "level": int(level),
        "distribution": distribution,
        "seed": seed,
        "planned": 1,
        "complete": 1,
        "failures": [],
        "samples": (Sample(path=Path("r01"), experiment=group, parts_ns=parts),),
        "curves": ({5: 0.5 + seed / 10, 10: 0.9 + seed / 100},),
        "time_to_target_s": [float(10 * (seed + 1))],
    } | more


def test_both_distributions_stand_beside_each_other() -> None:
    cells = [cell("net2-sec3", name, seed) for name in ("iid", "noniid") for seed in range(3)]
    cells[0] |= {"failures": [{"class": "workload"}, {"class": "contention"}]}
    cells[-1] |= {"complete": 0, "samples": (), "curves": (), "time_to_target_s": []}
    cells[-1] |= {"failures": [{"class": "workload"}, {"class": "not in force"}]}
    iid, noniid = outcomes_of(cells)
    assert (iid["distribution"], iid["complete"], iid["planned"], iid["rounds"]) == ("iid", 3, 3, 57)
    # What others spoiled was no attempt of the deployment's to fail.
    assert (iid["attempts"], iid["failed_attempts"]) == (4, 1)
    assert (noniid["complete"], noniid["attempts"], noniid["failed_attempts"]) == (2, 4, 2)
    assert (iid["median_s"], iid["p99_s"]) == (1.0, None)  # p99 takes a hundred rounds
    assert (iid["time_to_target_s"], iid["reached_target"]) == (20.0, 3)
    assert noniid["time_to_target_s"] == 15.0


def test_a_hundred_rounds_have_a_p99() -> None:
    (row,) = outcomes_of([cell("net2-sec3", "iid", seed) for seed in range(6)])
    assert row["p99_s"] == pytest.approx(1.9, abs=0.01)


def test_accuracy_has_the_range_of_the_runs_around_its_median() -> None:
    cells = [cell("net0-sec0", "iid", seed) for seed in range(3)]
    cells[2]["curves"] = ({5: 0.7},)  # one that did not get to round 10
    (curve,) = convergence_of(cells)
    assert (curve["rounds"], curve["runs"]) == ([5, 10], [3, 2])
    assert (curve["low"], curve["median"], curve["high"]) == ([0.5, 0.9], [0.6, 0.905], [0.7, 0.91])


def test_what_is_known_is_drawn_and_nothing_else() -> None:
    both = [cell(group, name, 0) for group in ("net0-sec0", "net2-sec3") for name in ("iid", "noniid")]
    report = {"outcomes": outcomes_of(both), "convergence": convergence_of(both)}
    assert set(draw_outcomes(report)) == {"success-by-data", "accuracy", "convergence"}
    panels = draw_outcomes(report)["convergence"].axes
    assert [axes.get_title() for axes in panels] == ["iid", "noniid"]
    one = [cell("net0-sec0", "iid", 0, time_to_target_s=[None], curves=({5: 0.5},))]
    assert draw_outcomes({"outcomes": outcomes_of(one), "convergence": convergence_of(one)}) == {}
    failing = [one[0] | {"failures": [{"class": "workload"}]}]
    drawn = draw_outcomes({"outcomes": outcomes_of(failing), "convergence": []})
    assert set(drawn) == {"failures"}
    texts = [text.get_text() for text in drawn["failures"].axes[0].texts]
    assert texts == ["1 of 2"]


def test_tables_have_numbers_where_nothing_is_known() -> None:
    one = [cell("net0-sec0", "iid", 0, samples=(), time_to_target_s=[])]
    frame = outcomes_frame({"outcomes": outcomes_of(one)})
    assert frame["median_s"].dtype == frame["time_to_target_s"].dtype == np.float64
    assert list(completion_frame({"completion": []}).columns)[:2] == ["factor", "value"]
