"""`ztprobe trace --runtime kubernetes --experiment ...` on a real node: pods of our image, a real kubelet."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.real_node import RealNode, namespace_gone, run_directory, wait_for
from tests.kernel.kubelet import await_line
from ztprobe.rundir.store import load_run

ROUNDS = 3
TRACE = ("trace", "--runtime", "kubernetes", "--clients", "2")
PARTIES = {"fl-server", "fl-client-0", "fl-client-1"}
MESSAGE_S = 4.8 * 8 / 10  # 4.8 MB at 10 Mbit/s


@pytest.fixture(autouse=True)
def _nothing_left(node: RealNode) -> Iterator[None]:
    yield
    # kubelet 1.20 takes its time with a pod that is told to go twice.
    wait_for("the runs' namespaces are gone", namespace_gone(node, "fl-"), 120)
    assert node.pods(selector="ztprobe.run") == []
    assert node.shaped() == []


def test_a_rate_beside_its_baseline(node: RealNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--experiment", "net5-sec0", "--rounds", str(ROUNDS), "--out", str(out), "--json")
    done = node.ztprobe(*TRACE, *words)
    report, run = json.loads(done.stdout), load_run(out)
    baseline = load_run(out / "baseline")
    assert report["runtime"] == "kubernetes"
    assert [one["round"] for one in report["rounds"]] == list(range(1, ROUNDS + 1))
    for one in report["rounds"]:
        parts_s = sum(one["components"].values()) + one["residual_s"]
        assert parts_s == pytest.approx(one["duration_s"], abs=1e-6)
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
        # The server's two messages share its rate, and an update follows.
        assert one["components"]["transmission"] > 2 * MESSAGE_S
    assert report["overhead"]["baseline"] == "net0-sec0"
    assert report["overhead"]["components"]["transmission"]["delta_s"] > 2 * MESSAGE_S
    emulation = run.meta["emulation"]
    assert emulation["backend"] == "tbf"
    assert emulation["measured"]["rate_mbit"] == pytest.approx(10, rel=0.05)
    assert {name for name in emulation["observed"] if name.startswith("fl-")} == PARTIES
    assert set(run.meta["facts"]["gate_held_s"]) == PARTIES
    for each in (run, baseline):
        assert each.meta["topology"]["serves"] == {"fl-server": ["fl-client-0", "fl-client-1"]}
        proven = each.meta["enforcement"]["network_policy"]
        assert [one["name"].partition(":")[0] for one in proven].count("open without policy") == 3
        assert all(one["passed"] for one in proven)
        assert not any(each.meta["loss"].values())
    assert baseline.meta["facts"]["namespace"] != run.meta["facts"]["namespace"]


def test_a_network_that_enforces_no_policy_is_found_out_before_round_1(
    node: RealNode, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = node.ztprobe(*TRACE, "--experiment", "net0-sec1", "--no-baseline", "--out", str(out), fails=5)
    line = done.stderr.splitlines()[-1]
    assert "forbidden: fl-client-0 -> fl-server:50052/tcp: expected no connection, observed connected" in line
    assert "does this cluster's network plugin enforce NetworkPolicy?" in line
    assert "round   1" not in done.stderr
    assert "does this cluster's network plugin" in run_directory(out)["failed"]["reason"]


def test_an_api_server_that_is_started_again_ends_nothing(node: RealNode, tmp_path: Path) -> None:
    out, rounds = tmp_path / "run", 30
    words = ("--experiment", "net0-sec0", "--rounds", str(rounds), "--no-baseline", "--out", str(out))
    begun = node.begin(*TRACE, *words)
    await_line(begun, f"round  2 of {rounds}", 300)
    before = node.node.component("kube-apiserver")
    os.kill(before, signal.SIGKILL)
    assert begun.stderr is not None
    said = begun.stderr.read()
    assert begun.wait(60) == 0, said
    assert node.node.component("kube-apiserver") != before
    assert "the run goes on, and it is asked again" in said
    assert "the Kubernetes API answers again" in said
    run = load_run(out)
    assert max(one["round"] for one in run.rounds if one["event"] == "round_end") == rounds
    assert not any(run.meta["loss"].values())


def test_a_pod_that_somebody_removes_ends_the_run(node: RealNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--experiment", "net0-sec0", "--rounds", "500", "--no-baseline", "--out", str(out))
    begun = node.begin(*TRACE, *words)
    await_line(begun, "round   2 of 500", 300)
    (pod,) = (pod for pod in node.pods(selector="ztprobe.run") if pod["metadata"]["name"] == "fl-client-1")
    where = pod["metadata"]["namespace"]
    node.call("DELETE", f"/api/v1/namespaces/{where}/pods/fl-client-1", {"gracePeriodSeconds": 1})
    assert begun.stderr is not None
    line = begun.stderr.read().splitlines()[-1]
    assert begun.wait(120) == 6, line
    assert f"{where}/fl-client-1 is removed by somebody" in line or "fl-client-1/client" in line
    assert run_directory(out)["failed"]["reason"]


def test_an_image_that_is_nowhere_is_one_line(node: RealNode, tmp_path: Path) -> None:
    words = ("--experiment", "net0-sec0", "--image", "ztprobe.invalid/fl:none", "--no-baseline")
    done = node.ztprobe(*TRACE, *words, "--out", str(tmp_path / "run"), fails=6)
    assert "the image ztprobe.invalid/fl:none cannot be pulled (" in done.stderr.splitlines()[-1]
