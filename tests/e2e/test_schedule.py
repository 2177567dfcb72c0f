"""A traced job under a network that changes while the rounds go on: the ledger follows it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from analysis.report.report import write_report
from tests.e2e.machine import look
from tests.schemas import problems
from ztprobe.experiment.names import Experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import run
from ztprobe.experiment.spec import spec_of
from ztprobe.profile.model import Profile
from ztprobe.profile.schedule import Schedule, Step
from ztprobe.progress import QuietProgress
from ztprobe.rundir.store import create_run_dir, load_run

# Short rounds, so that several fall wholly into each step, and enough of them to last for more than one.
NEAR_MS, FAR_MS, EVERY_S = 10.0, 50.0, 2.0
QUICK = {"FL_MODEL": "narrow", "FL_MAX_SAMPLES": "320"}


@pytest.mark.long
def test_propagation_follows_the_steps_of_a_schedule(tmp_path: Path) -> None:
    before = look()
    every_ns = round(EVERY_S * 1e9)
    steps = (Step(at_ns=0, delay_ms=NEAR_MS), Step(at_ns=every_ns, delay_ms=FAR_MS))
    profile = Profile(name="hops", schedule=Schedule(steps=steps, period_ns=2 * every_ns))
    target = create_run_dir(tmp_path / "run")
    request = TraceRequest(
        experiment=Experiment(profile="net0", level=0),
        baseline=None,
        rounds=150,
        clients=2,
        dataset="digits",
        data_dir=None,
        out=target.path,
        reconnect=False,
    )
    run(spec_of(request, offloads=True, profile=profile, environment=QUICK), target, QuietProgress())
    assert look() == before
    recorded = load_run(target.path).meta["emulation"]
    assert recorded["requested"]["delay_ms"] == NEAR_MS
    assert recorded["measured"]["delay_ms"] == pytest.approx(NEAR_MS, abs=0.5)
    changes = recorded["schedule"]["changes"]
    assert [change["step"] for change in changes] == [i % 2 for i in range(len(changes))]
    assert len(changes) >= 2
    assert all(change["error"] is None and change["at_ns"] >= change["from_ns"] for change in changes)
    assert all(change["at_ns"] - change["due_ns"] < 0.5e9 for change in changes)

    report = write_report(target.path)
    assert problems("report", report) == []
    whole = {NEAR_MS: 0, FAR_MS: 0}
    for one in report["rounds"]:
        met = one["conditions"]
        assert met[0]["from_s"] == 0
        assert met[-1]["to_s"] == pytest.approx(one["duration_s"], abs=1e-6)
        assert all(a["to_s"] == b["from_s"] for a, b in itertools.pairwise(met))
        # One message down and one up, each under the delay that was in force when it left.
        shortest, longest = (2e-3 * edge(span["delay_ms"] for span in met) for edge in (min, max))
        propagation_s = one["components"]["propagation"]
        assert shortest - 0.001 < propagation_s < longest + 0.02, one["round"]
        if len(met) == 1:
            whole[met[0]["delay_ms"]] += 1
    assert all(whole.values()), whole  # rounds wholly within either step, so the above tells them apart
    page = (target.path / "report.html").read_text()
    assert "It changed in place while the rounds went on" in page
