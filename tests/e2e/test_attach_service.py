"""`ztprobe trace --attach` where clients call an address that is translated on the way, as a Service's is."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.command import run
from tests.e2e.deployments import SERVICE, federation, places, service
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
