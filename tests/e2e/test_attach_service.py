"""`ztprobe trace --attach` where clients call an address that is translated on the way, as a Service's is."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Trace, run
from tests.e2e.deployments import SERVICE, federation, places, service
from tests.e2e.fl_processes import Start, start_client, start_server
from ztprobe.rundir.store import load_run


@pytest.mark.parametrize("named", [True, False], ids=["named", "by connection"])
def test_a_service_between_clients_and_server(tmp_path: Path, named: bool) -> None:
    out = tmp_path / "run"
    with places(3) as where, federation(tmp_path / "it", where=where, call=partial(service, where)) as it:
        words = ["--server", f"pid:{it.server.pid}", "--events-from", str(it.log), "--rounds", "6"]
        for client in it.clients if named else ():
            words += ["--client", f"pid:{client.pid}"]
        outcome = run("trace", "--attach", "--out", out, "--json", *words)
    assert outcome.status == 0, outcome.stderr
    report, seen = json.loads(outcome.stdout), load_run(out)
    clients = [one for one in seen.meta["attachment"]["participants"] if one["role"] == "client"]
    assert len(clients) == 2
    assert all(one["processes"] and one["pod"] and "address" not in one for one in clients)
    connections = seen.events["connections"]
    ends = set(connections[["remote", "remote_port"]].itertuples(index=False, name=None))
    assert SERVICE in ends
    assert (where[0][1], it.port) not in ends
    assert len(report["rounds"]) >= 5
    for one in report["rounds"]:
        assert {client["client"] for client in one["clients"]} == {client["name"] for client in clients}
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
        assert one["components"]["compute"] >= 0.02


def arrivals(one: dict[str, Any]) -> dict[str, float | None]:
    """When each client's update had come, in seconds from the round's beginning."""
    return {client["client"]: client["arrival_s"] for client in one["clients"]}


def test_a_client_that_is_replaced_is_told_from_its_first_message_on(start: Start, tmp_path: Path) -> None:
    """Its rounds are nobody else's waiting, and the time in which it was not there is not the server's."""
    out, away_s = tmp_path / "run", 3.0
    synthetic = json.dumps({"client": "synthetic", "synthetic_compute_ms": 200})
    common = {"FL_CLIENTS": "2", "FL_ROUNDS": "10000", "FL_EVAL_EVERY": "10000", "FL_OPTIONS": synthetic}
    with places(4) as where:
        again = common | {"POD_NAME": "fl-client-new", "JOB_COMPLETION_INDEX": "1"}
        server, _ = start_server(start, where[0][0], FL_LISTEN=f"{where[0][1]}:9000", **common)
        target = again["FL_SERVER"] = service(where, 9000)
        clients = [start_client(start, i, target, where[i + 1][0], **common) for i in range(2)]
        server.until("round_end")
        words = ("--server", f"netns:{where[0][0]}", "--events-from", str(server.out), "--rounds", "16")
        trace = Trace.start(out, "--attach", *words)
        trace.until(lambda trace: sum(line.startswith("round ") for line in trace.lines) >= 3)
        os.kill(clients[1].pid, signal.SIGTERM)
        time.sleep(away_s)
        start("fl.client", "new", where[3][0], **again)
        outcome = trace.wait()
    assert outcome.status == 0, outcome.stderr
    assert "client-3 has come" in outcome.stderr
    report = json.loads((out / "report.json").read_text())
    by_number = {one["round"]: one for one in report["rounds"]}
    waited = next(one for one in by_number.values() if arrivals(one)["client-3"] is not None)
    assert waited["critical_client"] == "client-3"
    assert waited["duration_s"] > away_s - 1
    # While it was away, and while it began.
    assert away_s - 1 < waited["residual_s"] < waited["duration_s"] - 0.2
    assert waited["components"]["compute"] >= 0.2
    for number in range(waited["round"] + 1, max(by_number) + 1):
        one = by_number[number]
        told = arrivals(one)
        assert told["client-1"] is not None
        assert told["client-2"] is None
        assert told["client-3"] is not None
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
