"""Somebody else takes away what a traced run stands on: the run ends, says why, and keeps what was seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import Trace
from tests.e2e.machine import assert_nothing_left, look
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "tc qdisc del dev eth0 root",
            "net5 is in force no longer: the tbf on eth0 of fl-client-0 has been removed by somebody else",
        ),
        (
            f"{sys.executable} -m tests.kernel.tcx {{netns}} eth0 ingress",
            "not all that happens is seen any more: the probe tc_eth_in on eth0 of fl-client-0 has been"
            " removed by somebody else",
        ),
    ],
)
def test_a_run_that_loses_a_qdisc_ends(tmp_path: Path, command: str, expected: str) -> None:
    before = look()
    words = ("--experiment", "net5-sec0", "--no-baseline", "--clients", "1", "--rounds", "3")
    trace = Trace.start(tmp_path / "run", *words)
    try:
        trace.until(lambda t: t.said("security"))
        netns = Path("/run/netns") / namespace_of(trace, "fl-client-0")
        with entered(netns):
            subprocess.run(command.format(netns=netns).split(), check=True, cwd=REPO_DIR)
        outcome = trace.wait()
    finally:
        trace.end()
    assert (outcome.status, outcome.stdout) == (5, "")
    assert outcome.stderr.splitlines()[-1].startswith(f"ztprobe: {expected}; ")
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["failed"]["reason"] == expected
    assert_nothing_left(before, trace)


def namespace_of(trace: Trace, pod: str) -> str:
    """The name of a pod's network namespace, from the run's journal."""
    names = [str(name) for journal in trace.journals.values() for name in journal["namespaces"]]
    (found,) = (name for name in names if name.endswith(pod))
    return found
