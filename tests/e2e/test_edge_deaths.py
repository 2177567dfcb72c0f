"""Edge aggregators that die in the middle of a run, and clients that do behind them: who is named."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from analysis.causes.diagnosis import diagnose_run
from tests.e2e.command import Trace, run
from tests.e2e.machine import assert_nothing_left, look
from tests.e2e.test_diagnose import process_of
from ztprobe.rundir.store import load_run
from ztprobe.validate.faults.acts.act import Act, ActMoment
from ztprobe.validate.faults.acts.processes import limit_memory
from ztprobe.validate.faults.model import Fault, Variant
from ztprobe.validate.faults.plan import PlannedFault
from ztprobe.validate.faults.runner import run_fault

pytestmark = pytest.mark.long

WORDS = ("--experiment", "net0-sec0", "--no-baseline", "--fl-client", "synthetic", "--rounds", "40")
BEHIND = "; behind it, fl-client-2 and fl-client-3 could not take part"


@pytest.mark.parametrize(
    ("name", "process", "cause", "summary"),
    [
        ("fl-edge-1", "fl-edge-1/edge", "application.edge_died", BEHIND),
        ("fl-client-2", "fl-client-2/client", "application.client_died", "was killed by SIGKILL"),
    ],
    ids=["edge", "client"],
)
def test_who_was_killed_is_named_and_nobody_else(
    tmp_path: Path, name: str, process: str, cause: str, summary: str
) -> None:
    before = look()
    out = tmp_path / "run"
    trace = Trace.start(out, *WORDS, "--fl-edges", "2", "--clients", "4")
    try:
        trace.until(lambda t: t.said("round 2"))
        os.kill(process_of(trace, lambda one: one.name() == name), signal.SIGKILL)
        outcome = trace.wait()
    finally:
        trace.end()
    assert (outcome.status, outcome.stdout) == (6, ""), outcome
    last = outcome.stderr.splitlines()[-1]
    assert f"{summary}: `ztprobe diagnose {out}`" in last
    found = json.loads(run("diagnose", out, "--json").stdout)
    first = found["causes"][0]
    assert (first["id"], first["pods"], first["rank"]) == (cause, [name], 1)
    assert first["summary"].startswith(process)
    assert first["summary"].endswith(summary)
    assert [one["id"] for one in found["causes"] if "edge" in one["id"]] == [cause] * (name == "fl-edge-1")
    if name == "fl-edge-1":
        closed = [one["event"] for one in first["timeline"] if " closes " in one["event"]]
        assert "fl-edge-1/edge closes fl-edge-1 -> fl-server:50051" in " ".join(closed)
        assert len(closed) == 3
    assert_nothing_left(before, trace)


def test_an_edge_that_needs_more_memory_than_it_may_have(tmp_path: Path) -> None:
    lowered = Act(
        "memory", limit_memory("fl-edge-0", "edge", share=1.01), ActMoment("fl-edge-0", "model_received", 2)
    )
    variant = Variant(
        what="an edge aggregator's memory limit is lowered below what it needs in round 2",
        acts=(lowered,),
        shows=r"ended: fl-edge-0/edge .*out of memory",
        level=2,
        clients=4,
        edges=2,
        bulk=True,
        deadline_s=25,
    )
    fault = Fault(cause="resources.oom_kill", variants=(variant,))
    planned = PlannedFault(fault=fault, number=1, variant=variant, network="net0", mode="persistent")
    made = run_fault(planned, tmp_path / "run", tmp_path / "manifests")
    assert made.is_there, (made.observed, made.problems)
    found: dict[str, Any] = diagnose_run(load_run(tmp_path / "run"))
    first = found["causes"][0]
    assert (first["id"], first["pods"]) == ("resources.oom_kill", ["fl-edge-0"])
    assert first["summary"].endswith("; behind it, fl-client-0 and fl-client-1 could not take part")
