"""A run whose policies come in the middle: rounds marked, connections kept or made anew, no harm done."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.causes.diagnosis import diagnose_run
from analysis.report.report import write_report
from tests.e2e.machine import look
from tests.schemas import problems
from ztprobe.experiment.level_switch import LevelSwitch
from ztprobe.experiment.names import Experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import run
from ztprobe.experiment.spec import spec_of
from ztprobe.progress import QuietProgress
from ztprobe.rundir.store import create_run_dir, load_run

QUICK = {"FL_MODEL": "narrow", "FL_MAX_SAMPLES": "320"}
ROUNDS, SWITCHED = 12, 4


@pytest.mark.parametrize("reconnect", [False, True])
def test_policies_that_come_in_the_middle_of_a_run(tmp_path: Path, reconnect: bool) -> None:
    before = look()
    target = create_run_dir(tmp_path / "run")
    request = TraceRequest(
        experiment=Experiment(profile="net0", level=0),
        baseline=None,
        rounds=ROUNDS,
        clients=2,
        dataset="digits",
        data_dir=None,
        out=target.path,
        reconnect=reconnect,
        level_switch=LevelSwitch(level=1, round=SWITCHED),
    )
    run(spec_of(request, offloads=True, environment=QUICK), target, QuietProgress())
    assert look() == before
    told = load_run(target.path).meta["level_switch"]
    assert told["due_ns"] < told["from_ns"] < told["at_ns"] < told["proven_ns"]
    assert [proof["passed"] for proof in told["proofs"]] == [True]

    report = write_report(target.path)
    assert problems("report", report) == []
    rounds = report["rounds"]
    assert [one["round"] for one in rounds] == list(range(1, ROUNDS + 1))
    assert all(one["security_levels"] == ["sec0"] for one in rounds[: SWITCHED - 1])
    assert "sec1" in rounds[SWITCHED]["security_levels"] and rounds[-1]["security_levels"] == ["sec1"]
    # Nothing that the deployment sent was stopped, and the ledger closes.
    assert all(one["components"]["policy_drop"] == 0 for one in rounds)
    for one in rounds:
        total = sum(one["components"].values()) + one["residual_s"]
        assert total == pytest.approx(one["duration_s"], abs=1e-7)
    assert set(report["loss"].values()) == {0}
    clients = report["level_switch"]["clients"]
    assert [one["client"] for one in clients] == ["fl-client-0", "fl-client-1"]
    again = [one["reconnected_s"] is not None for one in clients]
    assert again == [reconnect] * 2
    assert diagnose_run(load_run(target.path))["troubles"] == []
