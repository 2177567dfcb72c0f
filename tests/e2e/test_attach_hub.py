"""A deployment with a hub, polls and a process per task: every component against injected truth."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Trace
from tests.generic_deployment import Settings
from tests.generic_truth import Truth
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered

# Beside 5 %: what a busy machine does to the distance between a system call and the line that logs it.
ABSOLUTE_S, RELATIVE = 0.05, 0.05
# However polls fall: in each round at least two of the server's and three of each node's follow one another,
# so that everybody's pause between two is seen.
TIMES: dict[str, Any] = {"train_s": 1.2, "node_poll_s": 0.4, "pause_s": 1.2}


@contextlib.contextmanager
def deployment(settings: Settings) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """All of it on one loopback; gone with the context."""
    name = f"ztp-t{Path(settings.directory).name[-6:]}"
    netns = create_netns(name)
    started: dict[str, subprocess.Popen[bytes]] = {}
    file = settings.save()
    try:
        with netlink(netns) as ipr:
            ipr.link("set", index=1, state="up")
        for role, *more in (["hub"], *(["node", client] for client in settings.clients), ["server"]):
            command = [sys.executable, "-m", "tests.generic_deployment", str(file), role, *more]
            with entered(netns):
                started[more[0] if more else role] = subprocess.Popen(command)
        yield started
    finally:
        for process in reversed(started.values()):
            process.terminate()
            process.wait()
        remove_netns(name)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="in-parts"),
        pytest.param(
            {"message_bytes": 20_000, "connections": 1, "hub_work_s": 0.2},
            id="small-one-connection",
            marks=pytest.mark.long,
        ),
    ],
)
def test_every_component_is_what_was_injected(more: dict[str, Any], tmp_path: Path) -> None:
    directory = tmp_path / "deployment"
    directory.mkdir()
    settings = Settings(
        directory=str(directory),
        hub=("127.0.0.1", 18000),
        node_ports=(18001, 18002),
        waits=True,
        **TIMES,
        **more,
    )
    log = directory / "server.jsonl"
    log.touch()
    with deployment(settings) as started:
        targets = [
            *("--server", f"pid:{started['server'].pid}", "--hub", f"pid:{started['hub'].pid}"),
            *(word for client in settings.clients for word in ("--client", f"pid:{started[client].pid}")),
        ]
        rounds = ("--rounds", str(settings.rounds), "--for", "60s")
        trace = Trace.start(tmp_path / "run", "--attach", *targets, "--events-from", str(log), *rounds)
        trace.until(lambda trace: trace.said("probes"))
        (directory / "go").touch()
        outcome = trace.wait()
    assert outcome.status == 0, outcome.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["rounds"]) == settings.rounds
    truth = Truth(directory)
    for one in report["rounds"]:
        parts = one["components"]
        assert sum(parts.values()) + one["residual_s"] == pytest.approx(one["duration_s"], abs=1e-6)
        assert one["residual_s"] <= 0.05 * one["duration_s"], one
        expected = truth.of_round(one["round"], one["critical_client"])
        found = {name: parts[name] for name in expected}
        # The hub's handling of each part, which nobody injected, is in it besides.
        assert -0.01 < found.pop("store_and_forward") - expected.pop("store_and_forward") < 0.2
        assert found == pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE_S), one["round"]
    said = report["communication"]
    assert said["path"] == ["server", "hub", "client", "task's process"]
    pauses = {one["who"]: one["pause_s"] for one in said["pollers"]}
    assert pauses["server"] == pytest.approx(settings.server_poll_s, rel=0.05)
    for client in settings.clients:
        assert pauses[client] == pytest.approx(settings.node_poll_s, rel=0.05)
    lines = (tmp_path / "run" / "communication.csv").read_text().splitlines()
    assert len(lines) == 1 + settings.rounds * len(settings.clients)
