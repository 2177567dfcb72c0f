"""A run whose level changes in the middle: rounds marked, connections kept or made anew, no harm done."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.causes.diagnosis import diagnose_run
from analysis.report.report import write_report
from tests.e2e.losses import assert_nothing_lost
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
SWITCHED = 4


@pytest.mark.parametrize(
    ("level", "reconnect"),
    [
        pytest.param(1, False, marks=pytest.mark.long),
        (1, True),
        pytest.param(2, True, marks=pytest.mark.long),
        pytest.param(3, False, marks=pytest.mark.long),
    ],
)
def test_a_level_that_comes_in_the_middle_of_a_run(tmp_path: Path, level: int, reconnect: bool) -> None:
    before = look()
    # So short that many of them pass while sidecars come up and are tried.
    rounds_asked = 20 if level == 1 and reconnect else 150
    target = create_run_dir(tmp_path / "run")
    request = TraceRequest(
        experiment=Experiment(profile="net0", level=0),
        baseline=None,
        rounds=rounds_asked,
        clients=2,
        dataset="digits",
        data_dir=None,
        out=target.path,
        reconnect=reconnect,
        level_switch=LevelSwitch(level=level, round=SWITCHED),
    )
    run(spec_of(request, offloads=True, environment=QUICK), target, QuietProgress())
    assert look() == before
    told = load_run(target.path).meta["level_switch"]
    times = [told[name] for name in ("due_ns", "from_ns", "sidecars_ns", "policies_ns", "proven_ns")]
    assert [one is not None for one in times[2:4]] == [level >= 2, level != 2]
    assert sorted(filter(None, times)) == list(filter(None, times))
    assert (
        all(proof["passed"] for proof in told["proofs"]) and len(told["proofs"]) == {1: 1, 2: 5, 3: 6}[level]
    )

    report = write_report(target.path)
    assert problems("report", report) == []
    rounds = report["rounds"]
    assert [one["round"] for one in rounds] == list(range(1, rounds_asked + 1))
    assert all(one["security_levels"] == ["sec0"] for one in rounds[: SWITCHED - 1])
    assert rounds[-1]["security_levels"] == [f"sec{level}"]
    assert any(one["security_levels"] == ["sec0", f"sec{level}"] for one in rounds)
    # Nothing that the deployment sent was stopped, and the ledger closes.
    assert all(one["components"]["policy_drop"] == 0 for one in rounds)
    for one in rounds:
        total = sum(one["components"].values()) + one["residual_s"]
        assert total == pytest.approx(one["duration_s"], abs=1e-7)
    assert_nothing_lost(report)
    clients = report["level_switch"]["clients"]
    assert [one["client"] for one in clients] == ["fl-client-0", "fl-client-1"]
    again = [one["reconnected_s"] is not None for one in clients]
    assert again == [reconnect or level >= 2] * 2
    assert {(one["tls"], one["mutual"]) for one in clients} == {
        ("1.3", "yes") if level >= 2 else (None, None)
    }
    tls = {one["round"]: one["components"]["tls_handshake"] for one in rounds}
    assert all(tls[number] == 0 for number in range(1, SWITCHED))
    assert (max(tls.values()) > 0) is (level >= 2)
    # Behind sidecars there is a proxy on the way, and before them there is none.
    proxy = [one["components"]["proxy"] for one in rounds]
    assert max(proxy[: SWITCHED - 1]) == 0
    assert (proxy[-1] > 0) is (level >= 2)
    exchanges = {one["exchanges"] for one in rounds[1:]}
    assert exchanges == {1.0}
    assert diagnose_run(load_run(target.path))["troubles"] == []
