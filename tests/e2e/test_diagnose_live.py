"""A run that stands still is diagnosed while it does, by a second command that leaves nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.command import ZTPROBE, Trace, run
from tests.e2e.machine import assert_nothing_left, look
from tests.e2e.test_stalls import stopped
from ztprobe.pods.local import LocalPods

pytestmark = pytest.mark.long


def test_a_stopped_client_is_named_while_the_run_stands_still(tmp_path: Path) -> None:
    before = look()
    options = ("--experiment", "net0-sec0", "--no-baseline", "--clients", "2", "--rounds", "30")
    trace = Trace.start(tmp_path / "run", *options, "--fl-client", "synthetic", "--stall-after", "4")
    try:
        trace.until(lambda t: t.said("round  2"))
        (name,) = trace.journals.keys() & {pod.run for pod in LocalPods().neighbours("fl")}
        source = LocalPods(name)
        (pod,) = (pod for pod in source.neighbours("fl") if pod.name == "fl-client-0")
        calm = run("diagnose", "--live", "--run", name, "--for", "0.1", "--json")
        with stopped(source, pod):
            watching = subprocess.Popen(
                [*ZTPROBE, "diagnose", "--live", "--run", name, "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert watching.stdout is not None
                # A line each time that it changes: the first is calm, or says already that it takes long.
                for line in watching.stdout:
                    found = json.loads(line)
                    if found["causes"]:
                        break
            finally:
                watching.send_signal(signal.SIGINT)
                _, said = watching.communicate(timeout=60)
        outcome = trace.wait()
    finally:
        trace.end()
    assert calm.status == 0, calm
    assert json.loads(calm.stdout)["causes"] == []
    assert (found["run"], found["failed"]) == (name, None)
    assert found["causes"][0]["id"] == "application.process_stopped"
    assert found["causes"][0]["pods"] == ["fl-client-0"]
    assert watching.returncode == 0, said
    assert said.startswith(f"watching run {name} until it ends; Ctrl-C ends this before")
    # Afterwards the run itself says the same.
    assert outcome.status == 0, outcome
    causes = json.loads(run("diagnose", tmp_path / "run", "--json").stdout)["causes"]
    assert causes[0]["id"] == "application.process_stopped"
    assert_nothing_left(before, trace)
