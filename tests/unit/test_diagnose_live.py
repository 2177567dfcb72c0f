"""`ztprobe diagnose --live`: a run that goes on, from what it has written so far."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.causes.case import case_of
from analysis.causes.diagnosis import diagnose_run
from analysis.causes.troubles import troubles_of
from tests.unit.recorded_run import recorded
from ztprobe import paths
from ztprobe.agent.machine_load import COLUMNS
from ztprobe.cli.diagnose_live import watch_causes
from ztprobe.cli.entry import main
from ztprobe.errors import UsageError
from ztprobe.experiment import live_state
from ztprobe.experiment.live_state import FILE, RunSoFar, runs_going_on
from ztprobe.rundir.store import Run

NS = 1_000_000_000


def going_on(*, since_s: float, **meta: Any) -> Run:
    """The recorded run in its last round, so long after that began."""
    run = recorded()
    begun_ns = [e for e in run.rounds if e["event"] == "round_start"][-1]["time_monotonic_ns"]
    now_ns = begun_ns + round(since_s * NS)
    rounds = [e for e in run.rounds if e["time_monotonic_ns"] <= begun_ns]
    first = run.meta["clock_samples"][0]
    offset_ns = first["time_unix_ns"] - first["time_monotonic_ns"]
    last = {"time_monotonic_ns": max(now_ns, _end_ns(run)), "time_unix_ns": _end_ns(run) + offset_ns}
    samples = [first, {**last, "time_unix_ns": last["time_monotonic_ns"] + offset_ns}]
    meta = {**run.meta, "clock_samples": samples, "so_far": {"at_ns": now_ns}, **meta}
    return dataclasses.replace(run, rounds=rounds, meta=meta)


def _end_ns(run: Run) -> int:
    return int(run.meta["clock_samples"][-1]["time_monotonic_ns"])


def test_a_round_that_has_lasted_long_is_in_trouble_before_it_ends() -> None:
    (trouble,) = troubles_of(case_of(going_on(since_s=90)))
    assert (trouble.kind, trouble.rounds) == ("unfinished", (8,))
    assert trouble.words.startswith("round 8 has gone on for 90.0 s, and its peers took ")
    assert set(trouble.pods) == set(case_of(recorded()).clients)


def test_a_round_that_has_just_begun_is_in_none() -> None:
    run = dataclasses.replace(recorded(), meta={**recorded().meta, "so_far": {"at_ns": _end_ns(recorded())}})
    found = diagnose_run(run)
    assert found["troubles"] == []
    assert found["said"] == "No cause: no round stands still or is clearly slower than its peers so far."


def test_what_stops_a_round_is_named_while_it_stands_still() -> None:
    run = going_on(since_s=90)
    at_ns = run.meta["so_far"]["at_ns"] - 10 * NS
    stopped = [
        {"at_ns": at_ns + n * NS, "pods": {}, "containers": {"fl-client-1/client": {"stopped": True}}}
        for n in (0, 5)
    ]
    found = diagnose_run(going_on(since_s=90, pod_counters=stopped))
    assert [one["id"] for one in found["causes"]] == ["application.process_stopped"]
    assert found["causes"][0]["cost"]["rounds"] == [8]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory, with root's eyes."""
    directory = tmp_path / "state"
    directory.mkdir()
    monkeypatch.setattr(paths, "STATE_DIR", directory)
    monkeypatch.setattr(live_state, "kernel_drop_reasons", dict)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return directory


def written(state: Path, name: str, run: Run, directory: Path) -> Path:
    """What a job writes of a run that goes on."""
    server = run.meta["topology"]["rounds_of"]
    logs = {pod["name"]: directory / "logs" / f"{pod['name']}.log" for pod in run.meta["pods"]}
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    logs[server].write_text("".join(json.dumps(event) + "\n" for event in run.rounds) + '{"event": "half')
    meta = {key: value for key, value in run.meta.items() if key != "table_rows"}
    content = {
        "at_ns": run.meta["clock_samples"][-1]["time_monotonic_ns"],
        "directory": str(directory),
        "server": server,
        "logs": {pod: str(log) for pod, log in logs.items()},
        "owners": {"pods": {}, "processes": {}},
        "machine": json.loads(pd.DataFrame(columns=list(COLUMNS)).to_json(orient="split", index=False)),
        "meta": meta,
    }
    (state / name).mkdir(exist_ok=True)
    (state / name / FILE).write_text(json.dumps(content))
    return state / name / FILE


def test_a_run_that_goes_on_is_read_like_a_saved_one(state: Path, tmp_path: Path) -> None:
    file = written(state, "abc123", recorded(), tmp_path / "run")
    assert runs_going_on() == ["abc123"]
    watched = RunSoFar("abc123")
    run = watched.read()
    assert (run.name, len(run.rounds)) == (recorded().name, len(recorded().rounds))  # half a line is left out
    assert run.meta["so_far"]["at_ns"] == run.meta["clock_samples"][-1]["time_monotonic_ns"]
    assert set(run.events) >= {"bursts", "packets", "machine"}
    file.unlink()
    assert watched.is_over
    with pytest.raises(UsageError, match="has ended"):
        watched.read()


def test_a_diagnosis_is_said_once_and_leaves_nothing(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(state, "abc123", recorded(), tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    watch_causes(None, None, seconds=0.3, as_json=True)
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    found = json.loads(line)
    assert (found["run"], found["experiment"], found["causes"]) == ("abc123", recorded().name, [])
    assert said.err.startswith("watching run abc123 for 0.3 s")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "names", "says"),
    [
        (["--live"], (), "no run is in its rounds: start one in another terminal"),
        (["--live"], ("a", "b"), "several runs go on: say which with --run: a, b"),
        (["--live", "--run", "c"], ("a", "b"), "--run c: no such run is in its rounds; there is a, b"),
        (["--live", "runs/x"], (), "leave one out"),
        (["runs/x", "--for", "3"], (), "--for belongs to --live"),
        (["runs/x", "--run", "a"], (), "--run belongs to --live"),
        ([], (), "give a RUN directory or a pcapng file, or --live"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    state: Path, words: list[str], names: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (state / name).mkdir()
        (state / name / FILE).write_text("{}")
    assert main(["diagnose", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
