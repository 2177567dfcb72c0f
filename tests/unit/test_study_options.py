"""The workload's options as factors of studies, and in pairs with and without them."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from analysis.results.study import study_report
from analysis.results.study_files import read_plan
from fl.options import FlOptions
from tests.unit.test_study import Made, made
from ztprobe.cli import main
from ztprobe.cli.fl_options import study_fl_options
from ztprobe.errors import UsageError
from ztprobe.experiment.names import Experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.profile.model import profile_names
from ztprobe.progress import QuietProgress
from ztprobe.study import execution
from ztprobe.study.pairs import run_pairs
from ztprobe.study.plan import load_study, pair_study

__all__ = ("made",)

WITH_OPTIONS = """
name: options
rounds: 7
factors:
  level: [0, 3]
  fl-compression: [none, top-k]
  fl-inspect: [false, true]
  fl-dp-clip: [null]
"""


def test_options_of_the_workload_are_factors(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(WITH_OPTIONS)
    study = load_study(str(tmp_path / "plan.yaml"), profile_names(), study_fl_options)
    assert [cell.name for cell in study.cells] == [
        f"net0-sec{level}{options}"
        for level in (0, 3)
        for options in ("", "-inspect", "-compression-top-k", "-compression-top-k-inspect")
    ]
    assert dict(study.cells[-1].fl) == {"compression": "top-k", "inspect": True}
    saved = [cell.get("fl") for cell in study.as_dict()["cells"]]
    # A study of before there were options goes on: its plan is written as it was.
    assert saved[:2] == [None, {"inspect": True}]
    with pytest.raises(UsageError, match="fl-compression: options of the workload cannot be varied here"):
        load_study(str(tmp_path / "plan.yaml"), profile_names())


@pytest.mark.parametrize("one", fields(FlOptions), ids=lambda one: one.name)
def test_every_option_is_a_factor(tmp_path: Path, one: Field[Any]) -> None:
    """Each with a value that is not its default, beside the option without which it would mean nothing."""
    about = one.metadata
    least = about.get("range", (0, 0))[0]
    value = about["choices"][1] if "choices" in about else max(3, least) if "type" in about else True
    if one.name == "dp_delta":
        value = 1e-06
    wanted = {one.name: value}
    if about.get("needs"):
        name, _, values = about["needs"].partition("=")
        wanted[name] = values.split("|")[-1]
    lines = [f"  fl-{name.replace('_', '-')}: [{json.dumps(its)}]" for name, its in wanted.items()]
    plan = "\n".join(["name: one", "rounds: 1", "clients: 9", "factors:", *lines])
    (tmp_path / "plan.yaml").write_text(plan)
    (cell,) = load_study(str(tmp_path / "plan.yaml"), profile_names(), study_fl_options).cells
    assert dict(cell.fl) == wanted
    (tmp_path / "study.json").write_text(
        json.dumps({"name": "one", "rounds": 1, "repetitions": 1, "cells": [cell.as_dict()]})
    )
    assert read_plan(tmp_path)["cells"][0]["fl"] == wanted


@pytest.mark.parametrize(
    ("factors", "problem"),
    [
        (
            "fl-compression: [none, int8], fl-top-k: [50]",
            "factors: --fl-top-k: 50 changes nothing without compression top-k (of the cells with"
            " fl-compression 'none', fl-top-k 50)",
        ),
        ("fl-compression: [zip]", "--fl-compression: 'zip', expected one of none, fp16"),
        ("fl-weather: [1]", "--fl-weather: there is no such option; there are --fl-algorithm"),
        ("fl-edges: [2, 6], clients: [5]", "--fl-edges: 6 are above the 5 clients"),
        ("fl-edges: []", "factors.fl-edges: [] "),
        ("fl-edges: [[1]]", "factors.fl-edges.0: [1] is not of type"),
    ],
)
def test_options_that_cannot_be_are_one_line(tmp_path: Path, factors: str, problem: str) -> None:
    (tmp_path / "plan.yaml").write_text(f"name: x\nrounds: 3\nfactors: {{{factors}}}\n")
    with pytest.raises(UsageError, match=re.escape(problem)) as raised:
        load_study(str(tmp_path / "plan.yaml"), profile_names(), study_fl_options)
    assert "\n" not in str(raised.value)


def test_a_study_of_options_tells_them_apart(made: Made, tmp_path: Path, capsys) -> None:
    (tmp_path / "plan.yaml").write_text(WITH_OPTIONS.replace("level: [0, 3]", "profile: [net0]"))
    out = tmp_path / "out"
    study = load_study(str(tmp_path / "plan.yaml"), profile_names(), study_fl_options)
    execution.run_study(dataclasses.replace(study, repetitions=2), out, QuietProgress())
    plain, inspect, topk = {}, {"inspect": True}, {"compression": "top-k"}
    expected = [options for options in (plain, inspect, topk, inspect | topk) for _ in range(2)]
    assert sorted(made.options, key=str) == sorted(expected, key=str)
    report = study_report(out)
    assert [group["name"] for group in report["groups"]] == [cell.name for cell in study.cells]
    rows = {(row["factor"], row["value"]): row["complete"] for row in report["completion"]}
    assert rows["compression", "not given"] == rows["compression", "top-k"] == rows["inspect", "True"] == 4
    terms = {"--fl-compression", "--fl-inspect", "--fl-compression × --fl-inspect"}
    assert set(report["effects"]["terms"]) == terms
    assert main(["report", str(out)]) == 0
    assert "net0-sec0-compression-top-k" in capsys.readouterr().out
    assert "net0-sec0-compression-top-k-inspect" in (out / "study.html").read_text()


def test_pairs_with_an_option_are_pairs_with_and_without_it(made: Made, tmp_path: Path) -> None:
    experiment = Experiment(profile="net0", level=0)
    request = TraceRequest(
        experiment=experiment,
        baseline=dataclasses.replace(experiment),
        rounds=7,
        clients=5,
        dataset="digits",
        data_dir=None,
        out=tmp_path / "out",
        reconnect=False,
        fl={"compression": "int8"},
    )
    comparison = run_pairs(pair_study(request, 2), request.out, QuietProgress())
    assert sorted(made.options, key=str) == [{"compression": "int8"}] * 2 + [{}] * 2
    assert comparison["pairs"] == 2
    assert comparison["reference"]["experiment"] == "net0-sec0"
    assert [group["experiment"] for group in comparison["groups"]] == ["net0-sec0-compression-int8"]
