"""What a traced job leaves where it fails."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.report.report import build_report
from tests.unit.synthetic_run import make_ledger, make_run
from ztprobe import paths
from ztprobe.errors import WorkloadError
from ztprobe.experiment import pair
from ztprobe.experiment.names import parse_experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.progress import QuietProgress
from ztprobe.rundir.logs import GrowingLog
from ztprobe.rundir.store import RunDir
from ztprobe.runtime.interface import Enforcement, NotProven, Proof


class Failing:
    """In place of a whole deployment: a client that says why and dies."""

    def __init__(self, spec: Any, target: Any, _progress: Any, **_more: Any) -> None:
        self.spec, self.target = spec, target

    def run(self) -> None:
        log = self.target.path / "logs" / "fl-client-0.client.err"
        log.write_text("out of paper\n")
        raise WorkloadError(f"fl-client-0/client exited with status 1: out of paper (see {log})")


def test_the_log_that_a_failure_names_outlives_the_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_in = tmp_path / "tmp"
    kept_in.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(kept_in))
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    monkeypatch.setattr(pair, "Job", Failing)
    with pytest.raises(WorkloadError) as failed:
        pair.run_pair(requested(tmp_path), QuietProgress())
    named = re.search(r"\(see (.*)\)", str(failed.value))
    assert named is not None
    assert Path(named[1]).read_text() == "out of paper\n"
    assert Path(named[1]).is_relative_to(kept_in)
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def requested(tmp_path: Path) -> TraceRequest:
    return TraceRequest(
        experiment=parse_experiment("net0-sec0", ["net0"]),
        baseline=None,
        rounds=1,
        clients=1,
        dataset="digits",
        data_dir=None,
        out=tmp_path / "runs" / "run",
        reconnect=False,
    )


class Unproven(Failing):
    """A control that is not in force."""

    def run(self) -> None:
        proof = Proof(name="forbidden: a -> b", expected="timed out", observed="connected", passed=False)
        raise NotProven(
            Enforcement(network_policy_expected=True, mtls_expected=False, network_policy=(proof,))
        )


def test_what_is_not_in_force_is_said_and_keeps_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    monkeypatch.setattr(pair, "Job", Unproven)
    with pytest.raises(
        NotProven, match="forbidden: a -> b: expected timed out, observed connected"
    ) as failed:
        pair.run_pair(requested(tmp_path), QuietProgress())
    assert failed.value.exit_code == 5


def test_a_training_that_diverges_is_a_result(tmp_path: Path) -> None:
    """Other workloads write NaN as Python does; the finished run is kept, and its report says so."""
    ledger = make_ledger()
    whole = make_run(ledger=ledger)
    log = tmp_path / "fl-server.server.log"
    last = {"event": "evaluate_end", "round": 2, "time_unix_ns": 5, "time_monotonic_ns": 5, "loss": math.nan}
    log.write_text("starting\n" + json.dumps(last) + "\n" + '{"event": "half')
    events = GrowingLog(log).fresh()
    assert events == [last | {"loss": None}]
    RunDir(tmp_path).append_jsonl("rounds.jsonl", *events)
    assert json.loads((tmp_path / "rounds.jsonl").read_text())["loss"] is None
    report = build_report(dataclasses.replace(whole, rounds=whole.rounds + events), ledger, None)
    assert [note for note in report["notes"] if "diverged" in note] == [
        "The training diverged: its loss was no finite number in 1 round (2). Times are as measured;"
        " accuracies from there on say nothing."
    ]
    assert not any("diverged" in note for note in build_report(whole, ledger, None)["notes"])


@pytest.mark.parametrize("line", ['{"event": "a", "event": "b"}', '{"event": }', '{"event": "\xff"}'])
def test_a_line_of_a_log_that_is_no_event_ends_the_job_in_one_line(tmp_path: Path, line: str) -> None:
    log = tmp_path / "fl-server.server.log"
    log.write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(WorkloadError, match=r"fl-server.server.log: not a JSON event: b'"):
        GrowingLog(log).fresh()
