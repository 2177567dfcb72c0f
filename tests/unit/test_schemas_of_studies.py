"""The JSON Schemas of run.json, study-report.json and reproduction.json, held against what is written."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from analysis.results.study import study_report
from tests.schemas import problems, schema
from tests.unit.recorded_run import RECORDED
from tests.unit.test_reproduction import judged, rounds_of
from tests.unit.test_schemas import objects
from tests.unit.test_study import PAIR, Made, made
from ztprobe.errors import EnforcementError
from ztprobe.profile.model import profile_names
from ztprobe.progress import QuietProgress
from ztprobe.rundir.schema import LOSS_CHANNELS, problem_in
from ztprobe.study import execution
from ztprobe.study.plan import load_study

__all__ = ("made",)  # a fixture

EVERY_RUN = sorted(RECORDED.parent.rglob("run.json"))  # those that failed, and one that was attached to
# Names in there are those of options, cells or runs, or somebody else's.
OPEN_IN_STUDY = ("failures", "cells/0/fl", "cells/0/failures")


def only_what_is_described(name: str, document: dict[str, Any], among: tuple[str, ...]) -> int:
    """Take each field away and add one, in every object: neither fits. :returns: fields tried."""
    validator = Draft202012Validator(schema(name))
    assert problems(name, document) == []
    tried = 0
    for path, one in objects(document):
        if path.startswith(among):
            continue
        for key in sorted(one):
            value = one.pop(key)
            assert not validator.is_valid(document), f"{path}/{key} may be missing"
            one[key] = {"seconds": 1} if not isinstance(value, dict) else [value]
            assert not validator.is_valid(document), f"{path}/{key} may be anything"
            one[key] = value
            tried += 1
        one["surprise"] = ["of a kind that no map of names holds"]
        assert not validator.is_valid(document), f"{path}/surprise may be there"
        del one["surprise"]
    assert validator.is_valid(document)
    return tried


def test_the_report_of_a_study_fits(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    execution.run_study(load_study("smoke", profile_names()), out, QuietProgress())
    report = study_report(out)
    assert problems("study-report", report) == []
    small = copy.deepcopy(report)
    effects = small["effects"]
    effects["parts"] = {"duration": effects["parts"]["duration"]}
    for scale in ("linear", "log"):
        effects["parts"]["duration"][scale] = effects["parts"]["duration"][scale][:1]
    small["groups"] = [one for one in small["groups"] if one["overhead"]][:1]
    small["groups"][0]["slack"] = small["groups"][0]["slack"][:1]
    for name in ("cells", "outcomes", "completion", "convergence"):
        small[name] = small[name][:1]
    # There with a model alone, and by part of a round.
    optional = ("effects/parts", "effects/joint")
    assert only_what_is_described("study-report", small, (*OPEN_IN_STUDY, *optional)) > 120


def test_reports_of_studies_that_went_wrong_fit(made: Made, tmp_path: Path) -> None:
    made.failing[1] = EnforcementError("no policy")
    made.busy = {2}
    execution.run_study(PAIR, tmp_path / "one", QuietProgress())
    report = study_report(tmp_path / "one")
    assert report["failures"] == {"not in force": 1, "contention": 1}
    assert problems("study-report", report) == []
    made.busy = set(range(1, 100))
    execution.run_study(dataclasses.replace(PAIR, repetitions=1), tmp_path / "busy", QuietProgress())
    report = study_report(tmp_path / "busy")
    assert report["reference"] is None
    assert problems("study-report", report) == []


def test_shared_parts_are_those_of_a_comparison() -> None:
    ours, theirs = schema("study-report")["$defs"], schema("comparison")
    shared = theirs["$defs"].keys() & ours.keys()
    assert {name: ours[name] for name in shared} == {name: theirs["$defs"][name] for name in shared}
    group = theirs["properties"]["groups"]["items"]["properties"] | theirs["$defs"]["described"]["properties"]
    assert ours["overhead"]["properties"] == group


def test_what_is_said_of_a_reproduction_fits() -> None:
    recorded = rounds_of(range(5))
    for new in (rounds_of(range(2), chance=2), rounds_of(range(1), chance=2)):
        assert problems("reproduction", judged(recorded, new)) == []
    found = judged(recorded, rounds_of(range(2), chance=2))
    found["rows"] = found["rows"][:1]
    ratios = ("rows/0/recorded_ratios", "rows/0/seen_ratios")  # names are those of seeds
    assert only_what_is_described("reproduction", found, ratios) > 20


@pytest.mark.parametrize("file", EVERY_RUN, ids=lambda file: str(file.relative_to(RECORDED.parent)))
def test_every_recorded_run_fits_and_each_of_its_fields_is_described(file: Path) -> None:
    meta = json.loads(file.read_text())
    assert problems("run", meta) == []
    assert problem_in(meta) is None
    described = schema("run")["properties"]
    assert meta.keys() <= described.keys()
    for name in ("pods", "probes", "nodes"):
        for one in meta.get(name, ()):
            assert one.keys() <= described[name]["items"]["properties"].keys()
    for name in ("emulation", "machine_load", "attachment"):
        assert meta.get(name, {}).keys() <= described[name]["properties"].keys()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("experiment", {"name": "net2-sec3", "nmae": "net2-sec3"}),
        ("clock_samples", []),
        ("clock_samples", [{"time_unix_ns": 1}]),
        ("loss_log", [{"from_ns": 1, "to_ns": 2, "channel": "gone", "count": 1}]),
        ("exits", [{"process": "a", "status": 1, "at_ns": 1, "when": 2}]),
        ("failed", {"reason": "it failed"}),
        ("digests", {"../run.json": "0"}),
        ("coverage", 1.5),
        ("kernel", 6.18),
    ],
)
def test_what_no_run_writes_does_not_fit(path: str, value: Any) -> None:
    meta = json.loads((RECORDED / "run.json").read_text())
    assert problems("run", meta | {path: value}) != []
    assert path in str(problem_in(meta | {path: value}))


@pytest.mark.parametrize("name", schema("run")["required"])
def test_a_run_without_what_it_cannot_be_told_without_does_not_fit(name: str) -> None:
    meta = json.loads((RECORDED / "run.json").read_text())
    del meta[name]
    assert name in str(problem_in(meta))


def test_channels_are_those_of_the_code() -> None:
    loss_log = schema("run")["properties"]["loss_log"]["items"]["properties"]
    assert loss_log["channel"]["enum"] == list(LOSS_CHANNELS)
