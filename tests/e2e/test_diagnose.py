"""Runs in which something dies: they say why, keep what was seen, and diagnose from it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.e2e.command import Trace, run
from tests.e2e.machine import assert_nothing_left, look

pytestmark = pytest.mark.long


def process_of(trace: Trace, which: Callable[[psutil.Process], bool]) -> int:
    for pid, started in trace.descendants:
        try:
            process = psutil.Process(pid)
            if process.create_time() == started and which(process):
                return pid
        except psutil.NoSuchProcess:
            continue
    raise AssertionError("no such process")


@pytest.mark.parametrize(
    ("which", "status", "causes"),
    [
        (lambda process: process.name() == "fl-server", 6, ["application.server_died"]),
        # The tracer itself: what it had written is read, and nothing else went wrong.
        (lambda process: "ztprobe.agent.remote" in process.cmdline(), 1, []),
    ],
    ids=["server", "tracer"],
)
def test_what_was_killed_is_found_in_what_was_saved(
    tmp_path: Path, which: Callable[[psutil.Process], bool], status: int, causes: list[str]
) -> None:
    before = look()
    out = tmp_path / "run"
    words = ("--experiment", "net0-sec0", "--no-baseline", "--clients", "1", "--rounds", "40")
    trace = Trace.start(out, *words)
    try:
        trace.until(lambda t: t.said("round 3"))
        os.kill(process_of(trace, which), signal.SIGKILL)
        outcome = trace.wait()
    finally:
        trace.end()
    assert (outcome.status, outcome.stdout) == (status, ""), outcome
    last = outcome.stderr.splitlines()[-1]
    assert "ztprobe diagnose" in last
    assert str(out) in last
    run("report", out).assert_refused(4, "the run failed", f"`ztprobe diagnose {out}`")
    diagnosed = run("diagnose", out, "--json")
    assert (diagnosed.status, diagnosed.stderr) == (0, "")
    found = json.loads(diagnosed.stdout)
    assert [one["id"] for one in found["causes"]][:1] == causes
    said, _, log = found["failed"]["reason"].partition(" (see ")
    assert said in last
    assert (out / log.rstrip(")")).is_file()
    assert [one["kind"] for one in found["troubles"]] == ["unfinished"]
    if causes:
        assert found["causes"][0]["summary"] == "fl-server/server was killed by SIGKILL"
        assert found["causes"][0]["summary"] in last
        assert found["causes"][0]["timeline"][0]["event"] == "fl-server/server was killed by SIGKILL"
    assert_nothing_left(before, trace)
