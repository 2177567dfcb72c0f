"""`ztprobe trace --runtime kubernetes --experiment` killed on a real node: what is left, and who ends it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import left_behind
from tests.cluster.real_node import RealNode, namespace_gone, wait_for
from tests.kernel.kubelet import await_line

TRACE = ("trace", "--runtime", "kubernetes", "--clients", "2", "--no-baseline")


@dataclass(frozen=True)
class Before:
    """What was there before the trace."""

    objects: set[str]
    namespaces: set[str]
    pinned: set[str]


@pytest.fixture
def before(node: RealNode) -> Iterator[Before]:
    wait_for("earlier runs are gone", namespace_gone(node, "fl-"), 120)
    assert left_behind.on_devices(node) == set()
    yield Before(left_behind.objects(node), left_behind.namespaces(node), left_behind.pinned(node))
    node.ztprobe("undeploy", "--all", fails=None)
    wait_for("the runs' namespaces are gone", namespace_gone(node, "fl-"), 120)


def killed(node: RealNode, out: Path) -> str:
    """A trace with a rate in force, killed in mid-run; the run's name."""
    begun = node.begin(*TRACE, "--experiment", "net5-sec0", "--rounds", "500", "--out", str(out))
    await_line(begun, "round   2 of 500", 300)
    # What is looked for can be seen: a rate on each of three pods, and programs on their devices.
    there = left_behind.on_devices(node)
    assert sum(" tbf " in one for one in there) == 3, there
    assert sum(": eth0 " in one for one in there) >= 6, there
    assert left_behind.processes(node)
    (run,) = {pod["metadata"]["labels"]["ztprobe.run"] for pod in node.pods(selector="ztprobe.run")}
    begun.send_signal(signal.SIGKILL)
    assert begun.stderr is not None
    begun.stderr.close()
    begun.wait(10)
    # Nobody watches any more; the pods are still there.
    wait_for("the agent has ended", lambda: not left_behind.processes(node), 30)
    assert not [one for one in left_behind.on_devices(node) if ": link " in one or " filter " in one]
    return str(run)


def nothing_is_left(node: RealNode, before: Before, run: str) -> None:
    wait_for("the run's namespace is gone", namespace_gone(node, "fl-"), 120)
    wait_for("its pods' networks are gone", lambda: left_behind.namespaces(node) == before.namespaces, 60)
    assert left_behind.on_devices(node) == set()
    assert left_behind.processes(node) == set()
    assert left_behind.pinned(node) == before.pinned
    assert left_behind.objects(node) == before.objects
    assert run not in node.ztprobe("clean").stdout


def test_clean_names_a_run_that_was_killed_and_undeploy_ends_it(
    node: RealNode, before: Before, tmp_path: Path
) -> None:
    run = killed(node, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    said = node.ztprobe("clean").stdout
    assert f"{run}: may still be on its cluster, in namespace fl-{run}: ztprobe undeploy {run}" in said
    assert run in json.loads(node.ztprobe("undeploy", "--json").stdout)
    node.ztprobe("undeploy", "--all")
    nothing_is_left(node, before, run)


def test_the_next_run_names_a_run_that_was_killed(node: RealNode, before: Before, tmp_path: Path) -> None:
    run = killed(node, tmp_path / "run")
    words = ("--experiment", "net0-sec0", "--rounds", "2", "--out", str(tmp_path / "next"))
    said = node.ztprobe(*TRACE, *words).stderr
    assert f"ztprobe undeploy {run}" in said
    node.ztprobe("undeploy", run)
    nothing_is_left(node, before, run)
