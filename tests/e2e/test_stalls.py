"""A run that hangs says who waits for whom and why, goes on when that ends, and has it in its report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Trace
from tests.e2e.machine import assert_nothing_left, look
from tests.programs import program
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.local import LocalPods
from ztprobe.pods.model import Pod

pytestmark = pytest.mark.long

_FILTER = (
    "table ip stall {\n chain c {\n type filter hook input priority 0; tcp dport 1024-65535 drop\n }\n}\n"
)


@contextlib.contextmanager
def stopped(source: LocalPods, pod: Pod) -> Iterator[None]:
    pids = list(source.processes([pod]))
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def filtered(_: LocalPods, pod: Pod) -> Iterator[None]:
    with entered(pod.netns):
        subprocess.run([program("nft"), "-f", "-"], input=_FILTER, text=True, check=True)
    try:
        yield
    finally:
        with entered(pod.netns):
            subprocess.run([program("nft"), "delete", "table", "ip", "stall"], check=True)


@pytest.mark.parametrize(
    ("cause", "words"),
    [(stopped, "fl-client-0 is stopped by a signal"), (filtered, "retransmitting into nothing")],
)
def test_a_stall_is_named_and_the_run_goes_on(
    tmp_path: Path, cause: Callable[[LocalPods, Pod], contextlib.AbstractContextManager[None]], words: str
) -> None:
    before = look()
    options = ("--experiment", "net0-sec0", "--no-baseline", "--clients", "2", "--rounds", "40")
    trace = Trace.start(
        tmp_path / "run", *options, "--fl-client", "synthetic", "--stall-after", "4", "--json"
    )
    try:
        trace.until(lambda t: t.said("round  2"))
        (run,) = trace.journals.keys() & {pod.run for pod in LocalPods().neighbours("fl")}
        source = LocalPods(run)
        (pod,) = (pod for pod in source.neighbours("fl") if pod.name == "fl-client-0")
        with cause(source, pod):
            trace.until(lambda t: any("stands still" in line for line in t.lines))
        outcome = trace.wait()
    finally:
        trace.end()
    assert outcome.status == 0, outcome
    (said,) = (line.strip() for line in outcome.stderr.splitlines() if "stands still" in line)
    assert "fl-server waits for fl-client-0" in said
    assert words in said
    assert "the server's deadline (FL_ROUND_DEADLINE_S)" in said
    assert "ago, fl-" in said
    report = json.loads(outcome.stdout)
    assert f"Stalled: {said}." in report["notes"]
    (stall,) = json.loads((tmp_path / "run" / "run.json").read_text())["stalls"]
    assert stall["waits_for"] == ["fl-client-0"]
    assert 4 <= (stall["at_ns"] - stall["since_ns"]) / 1e9 < 8
    assert_nothing_left(before, trace)
