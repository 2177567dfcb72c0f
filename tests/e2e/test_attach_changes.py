"""Deployments that change while they are traced: what the report names, and what a diagnosis makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.e2e.command import Trace, run
from tests.e2e.deployments import Federation, federation, places
from tests.schemas import problems
from ztprobe.kernelnet.netns import entered
from ztprobe.rundir.store import load_run


def started(out: Path, running: Federation, *more: str) -> Trace:
    """A trace of it, which has seen a round."""
    options = ("--server", f"pid:{running.server.pid}", "--events-from", str(running.log), *more)
    trace = Trace.start(out, "--attach", *options)
    trace.until(lambda trace: trace.said("probes"))
    return trace


def more_rounds(trace: Trace, count: int) -> None:
    """Wait for so many."""
    before = sum(line.startswith("round ") for line in trace.lines)
    trace.until(lambda trace: sum(line.startswith("round ") for line in trace.lines) >= before + count)


def ended(trace: Trace) -> str:
    """What it prints."""
    outcome = trace.interrupt(signal.SIGINT)
    assert outcome.status == 0, outcome.stderr
    return " ".join(outcome.stdout.split())


def diagnosed(out: Path) -> dict[str, Any]:
    outcome = run("diagnose", out, "--json")
    assert outcome.status == 0, outcome.stderr
    found = dict(json.loads(outcome.stdout))
    report = json.loads((out / "report.json").read_text())
    # The report says the same, where there is something to say.
    assert {name: report.get(name, []) for name in ("troubles", "causes")} == {
        name: found[name] for name in ("troubles", "causes")
    }
    for cause in found["causes"]:
        assert cause["id"] in (out / "report.html").read_text()
    return found


def names(out: Path) -> dict[int, str]:
    """Process -> the participant that it is of: those that nobody named are numbered as they were found."""
    found = load_run(out).meta["attachment"]["participants"]
    return {process["pid"]: one["name"] for one in found for process in one["processes"]}


def participants(out: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((out / "report.json").read_text())
    assert problems("report", report) == []
    return {one["name"]: one for one in report["attachment"]["participants"]}


def test_connections_that_are_older_are_named_and_nothing_is_wrong_with_them(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with federation(tmp_path / "it") as running:
        trace = started(out, running)
        more_rounds(trace, 6)
        printed = ended(trace)
    assert "not seen of 2 connections that were there before the trace" in printed
    assert "came and went" not in printed
    assert {name: one["set_up_not_seen"] for name, one in participants(out).items()} == {
        "server": 2,
        "client-1": 1,
        "client-2": 1,
    }
    found = diagnosed(out)
    assert (found["troubles"], found["causes"]) == ([], [])


def test_who_comes_late_and_who_vanishes_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with federation(tmp_path / "it") as running:
        trace = started(out, running)
        more_rounds(trace, 2)
        late = running.add_client()
        trace.until(lambda trace: trace.said("client-3 has come"))
        more_rounds(trace, 4)
        first = running.clients[0]
        first.kill()
        first.wait()
        more_rounds(trace, 10)
        printed = ended(trace)
    named, by_pid = participants(out), names(out)
    gone = by_pid[first.pid]
    (stayed,) = {"client-1", "client-2"} - {gone}
    assert by_pid[late.pid] == "client-3"
    assert named["client-3"]["came_s"] > 0
    assert named["client-3"]["left_s"] is None
    # Its connection was opened before our eyes.
    assert named["client-3"]["set_up_not_seen"] == 0
    assert named[gone]["left_s"] > named["client-3"]["came_s"]
    assert named[stayed] == {**named[stayed], "came_s": 0, "left_s": None, "set_up_not_seen": 1}
    assert "client-3 came " in printed
    assert f"{gone} ended " in printed
    assert "not seen of 2 connections" in printed
    assert f"Why: {gone} ended" in printed
    found = diagnosed(out)
    assert [(one["kind"], one["pods"]) for one in found["troubles"]] == [("vanished", [gone])]
    assert found["causes"][0]["id"] == "application.client_died"
    assert found["causes"][0]["pods"] == [gone]


@pytest.mark.long
def test_a_client_that_stands_still_keeps_a_round_open(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with federation(tmp_path / "it") as running:
        trace = started(out, running)
        more_rounds(trace, 6)
        stopped = running.clients[0]
        stopped.send_signal(signal.SIGSTOP)
        try:
            time.sleep(5)  # a round that has to be longer than its peers by three seconds
            ended(trace)
        finally:
            stopped.send_signal(signal.SIGCONT)
    still = names(out)[stopped.pid]
    found = diagnosed(out)
    assert [(one["kind"], one["pods"]) for one in found["troubles"]] == [("unfinished", [still])]
    assert f"{still} had sent nothing in it" in found["said"]
    # What keeps it is its own affair: nobody told the kernel. Others may keep the machine busy meanwhile.
    assert {one["id"] for one in found["causes"]} <= {"resources.cpu_contention"}


_KNOCKS = """
import socket, sys, time
while True:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
    except OSError:
        time.sleep(0.3)
"""


def test_a_client_that_knocks_where_nothing_listens(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with places(4) as where, federation(tmp_path / "it", where=where[:3]) as running:
        wrong = str(running.port + 1 if running.port < 65535 else running.port - 1)
        with entered(where[3][0]):
            lost = subprocess.Popen([sys.executable, "-c", _KNOCKS, where[0][1], wrong])
        try:
            pids = [*(one.pid for one in running.clients), lost.pid]
            named = [word for pid in pids for word in ("--client", f"pid:{pid}")]
            trace = started(out, running, *named)
            more_rounds(trace, 6)
            ended(trace)
        finally:
            lost.kill()
            lost.wait()
    found = diagnosed(out)
    assert [(one["kind"], one["pods"]) for one in found["troubles"]] == [("set-up", ["client-3"])]
    assert found["causes"][0]["id"] == "application.nothing_listens"
    assert f":{wrong} in server; client-3 was refused" in found["causes"][0]["summary"]


def test_without_a_round_the_last_line_says_why_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with places(3) as where, federation(tmp_path / "it", where=where[:2], clients=1, pause_s=1000) as running:
        wrong = str(running.port + 1 if running.port < 65535 else running.port - 1)
        with entered(where[2][0]):
            lost = subprocess.Popen([sys.executable, "-c", _KNOCKS, where[0][1], wrong])
        try:
            pids = [running.clients[0].pid, lost.pid]
            named = [word for pid in pids for word in ("--client", f"pid:{pid}")]
            outcome = started(out, running, *named, "--for", "5s").wait()
        finally:
            lost.kill()
            lost.wait()
    assert outcome.status == 6
    last = outcome.stderr.splitlines()[-1]
    assert "no round was seen in" in last
    assert last.endswith(f"client-2 was refused: `ztprobe diagnose {out}`")


def test_what_was_seen_is_kept_when_the_agent_dies(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with federation(tmp_path / "it") as running:
        trace = started(out, running)
        more_rounds(trace, 6)
        (agent,) = psutil.Process(trace.process.pid).children()
        agent.kill()
        outcome = trace.wait()
    assert outcome.status == 1
    words = "the agent has ended before its time"
    assert outcome.stderr.splitlines()[-1].startswith(f"ztprobe: {words}")
    assert outcome.stderr.splitlines()[-1].endswith(f"is in {out}, for `ztprobe diagnose`")
    kept = load_run(out)
    assert len(kept.rounds) >= 12
    assert {one["name"] for one in kept.meta["attachment"]["participants"]} == {
        "server",
        "client-1",
        "client-2",
    }
    said = run("diagnose", out)
    assert said.status == 0
    assert f"No cause: the trace failed ({words} (see logs/agent.log))" in said.stdout
    assert run("report", out).status == 4


_OVER_UNIX = """
import os, socket, sys, time
path = sys.argv[1]
if os.fork():
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path); listener.listen(); other, _ = listener.accept()
        other.recv(1)
        time.sleep(100)
else:
    while not os.path.exists(path): time.sleep(0.01)
    time.sleep(0.2)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path); caller.sendall(b"x")
        time.sleep(100)
"""


def test_what_passes_over_unix_sockets_is_said_to_be_not_seen(tmp_path: Path) -> None:
    out, path = tmp_path / "run", tmp_path / "socket"
    with federation(tmp_path / "it") as running:
        parts = subprocess.Popen([sys.executable, "-c", _OVER_UNIX, str(path)], start_new_session=True)
        try:
            time.sleep(1)
            named = [word for one in (*running.clients, parts) for word in ("--client", f"pid:{one.pid}")]
            trace = started(out, running, *named)
            more_rounds(trace, 3)
            printed = ended(trace)
        finally:
            os.killpg(parts.pid, signal.SIGKILL)
            parts.wait()
    report = json.loads((out / "report.json").read_text())
    assert report["attachment"]["unix_sockets"] == [
        {"participants": ["client-3", "client-3"], "name": str(path)}
    ]
    assert "not seen what passes over Unix sockets" in printed
    assert f"processes of client-3 ({path})" in printed
