"""Why a deployment that was attached to hangs: named while it does, and in the run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Trace
from tests.e2e.deployments import Federation, federation, places
from ztprobe.rundir.store import load_run

AFTER_S = 4


@contextlib.contextmanager
def running(directory: Path, where: str) -> Iterator[Federation]:
    with contextlib.ExitStack() as stack:
        if where == "loopback":  # where only the sockets' owners tell who is who
            yield stack.enter_context(federation(directory))
        else:
            yield stack.enter_context(federation(directory, where=stack.enter_context(places(3))))


@pytest.mark.parametrize("where", ["namespaces", "loopback"])
def test_a_stopped_client_is_named_and_the_trace_goes_on(tmp_path: Path, where: str) -> None:
    out = tmp_path / "run"
    with running(tmp_path / "deployment", where) as deployment:
        clients = [word for client in deployment.clients for word in ("--client", f"pid:{client.pid}")]
        options = ("--server", f"pid:{deployment.server.pid}", *clients, "--stall-after", str(AFTER_S))
        trace = Trace.start(out, "--attach", *options, "--events-from", str(deployment.log), "--rounds", "60")
        stopped = deployment.clients[0].pid
        try:
            trace.until(lambda t: t.said("round  2"))
            os.kill(stopped, signal.SIGSTOP)
            try:
                trace.until(lambda t: any("stands still" in line for line in t.lines))
            finally:
                os.kill(stopped, signal.SIGCONT)
            outcome = trace.wait()
        finally:
            trace.end()
    assert outcome.status == 0, outcome
    (said,) = (line.strip() for line in outcome.stderr.splitlines() if "stands still" in line)
    assert "server waits for client-1" in said
    assert "client-1 is stopped by a signal" in said
    assert "ago, server -> client-1" in said
    (stall,) = load_run(out).meta["stalls"]
    assert (stall["waiting"], stall["waits_for"]) == ("server", ["client-1"])
    assert AFTER_S <= (stall["at_ns"] - stall["since_ns"]) / 1e9 < 2 * AFTER_S
    report = json.loads((out / "report.json").read_text())
    assert f"Stalled: {said}." in report["notes"]


def test_rounds_that_go_on_are_no_stall(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with running(tmp_path / "deployment", "loopback") as deployment:
        options = ("--server", f"pid:{deployment.server.pid}", "--stall-after", "1", "--for", "6s")
        trace = Trace.start(out, "--attach", *options, "--events-from", str(deployment.log))
        outcome = trace.wait()
    assert outcome.status == 0, outcome
    assert load_run(out).meta["stalls"] == []
