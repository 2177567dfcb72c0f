"""A delay line that stands still during the rounds of a run under a profile of one's own."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.e2e.command import Trace
from tests.e2e.machine import assert_nothing_left, look
from ztprobe.emulation.netem import netem_supported

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and netem_supported(), reason="this kernel has netem, so there is no delay line"
)


def delay_line_of(trace: Trace) -> int:
    for pid, started in trace.descendants:
        try:
            process = psutil.Process(pid)
            if process.create_time() == started and "delay_line.process" in " ".join(process.cmdline()):
                return pid
        except psutil.NoSuchProcess:
            continue
    raise AssertionError("no delay line")


@pytest.mark.parametrize(("seconds", "status"), [(6.0, 5), pytest.param(0.3, 0, marks=pytest.mark.long)])
def test_it_is_told_and_long_ones_end_the_run(tmp_path: Path, seconds: float, status: int) -> None:
    before = look()
    (tmp_path / "mine.yaml").write_text("name: cable\ndelay_ms: 40\n")
    words = ("--experiment", "net0-sec0", "--profile", "mine.yaml", "--no-baseline", "--clients", "1")
    trace = Trace.start(tmp_path / "run", *words, "--rounds", "3", "--json")
    try:
        trace.until(lambda t: t.said("round 1"))
        pid = delay_line_of(trace)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
        outcome = trace.wait()
    finally:
        trace.end()
    assert outcome.status == status, outcome
    if status:
        last = outcome.stderr.splitlines()[-1]
        assert last.startswith("ztprobe: cable is in force no longer: the delay line was late by ")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "run"]
        assert "failed" in json.loads((tmp_path / "run" / "run.json").read_text())
    else:
        report = json.loads(outcome.stdout)
        assert report["experiment"] == "cable-sec0"
        assert max(one.get("delay_line_late_s", 0) for one in report["rounds"]) == pytest.approx(0.3, rel=0.3)
        assert any("The delay line let packets go up to" in note for note in report["notes"])
    assert_nothing_left(before, trace)
