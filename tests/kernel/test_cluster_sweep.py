"""`ztprobe sweep --runtime kubernetes`: a whole study on one node, by a real API server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.cluster import NODE, KubeNode, kube_node
from tests.kernel.kubelet import Kubelet, await_line
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.store import load_run

pytestmark = pytest.mark.cluster

CELLS = {f"net0-sec{level}-c2-client-synthetic" for level in (0, 1)}
# What others do meanwhile on the machine that runs these tests is no matter here.
PLAN = """
name: two
rounds: 10
clients: 2
contention_retries: 0
factors: {level: [0, 1], fl-client: [synthetic]}
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    with kube_node(tmp_path_factory.mktemp("sweep")) as made:
        (made.directory / "log" / "pods").mkdir(parents=True)
        made.call("POST", "/api/v1/nodes", {"metadata": {"name": NODE}})
        has_room(made)
        yield made


def has_room(node: KubeNode, cpu: str = "2") -> None:
    allocatable = {"cpu": cpu, "memory": "8Gi", "pods": "110"}
    node.call("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": {"allocatable": allocatable}})


def words(directory: Path, *more: str, plan: str = PLAN) -> list[str]:
    (directory / "plan.yaml").write_text(plan)
    return ["sweep", str(directory / "plan.yaml"), "--out", str(directory / "out"), *more]


def sweep(node: KubeNode, *given: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return node.ztprobe(*given, "--runtime", "kubernetes", before=node.with_logs, **options)


def begin(node: KubeNode, given: list[str]) -> subprocess.Popen[str]:
    with entered(node.netns):
        return subprocess.Popen(
            [*node.with_logs, sys.executable, "-m", "ztprobe", *given, "--runtime", "kubernetes"],
            cwd=REPO_DIR,
            env=node.environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )


def pods_left(node: KubeNode) -> list[str]:
    found = node.call("GET", "/api/v1/pods?labelSelector=ztprobe.run")["items"]
    return [pod["metadata"]["name"] for pod in found]


def runs_there(out: Path) -> dict[str, int]:
    """Cell -> the i-node of its run's record."""
    return {file.parent.parent.name: os.stat(file).st_ino for file in out.glob("runs/*/r01/run.json")}


def test_a_study_that_is_killed_goes_on_and_its_page_says_where_it_ran(
    node: KubeNode, tmp_path: Path
) -> None:
    given, out = words(tmp_path), tmp_path / "out"
    with Kubelet(node, plugin="drop"):
        begun = begin(node, given)
        await_line(begun, "round  1 of 10", 180)
        begun.send_signal(signal.SIGINT)
        assert begun.wait(60) == 128 + signal.SIGINT
        assert (pods_left(node), runs_there(out)) == ([], {})

        begun = begin(node, given)
        await_line(begun, "2 of 2: ", 240)
        await_line(begun, "round  1 of 10", 180)
        begun.send_signal(signal.SIGKILL)
        begun.wait(60)
        first = runs_there(out)
        assert len(first) == 1
        assert len(pods_left(node)) == 3

        done = sweep(node, *given)
        assert pods_left(node) == []
    assert " was still on the cluster and is removed: 3 pods" in done.stderr
    there = runs_there(out)
    assert set(there) == CELLS
    assert first.items() <= there.items()  # what was there is the same file
    assert not (out / "attempts").exists()
    assert list((out / "on-cluster").iterdir()) == []
    assert not list(out.rglob("*partial*"))
    assert f"runtime: kubernetes, node {NODE}" in done.stdout
    assert f"runtime: kubernetes, node {NODE}" in (out / "study.html").read_text()
    report = json.loads((out / "study-report.json").read_text())
    assert (report["runtime"], report["nodes"]) == ("kubernetes", [NODE])
    runs = [load_run(out / "runs" / cell / "r01") for cell in CELLS]
    assert {run.meta["runtime"] for run in runs} == {"kubernetes"}
    assert len({run.meta["facts"]["namespace"] for run in runs}) == 2
    assert all(proof["passed"] for run in runs for proof in run.meta["enforcement"]["network_policy"])

    again = sweep(node, *given)  # nothing is left to do
    assert runs_there(out) == there
    assert "1 of 2" not in again.stderr
    other = node.ztprobe(*given, fails=4)
    (line,) = other.stderr.splitlines()
    assert f"{out}: holds a study of --runtime kubernetes" in line


def test_a_run_that_fails_is_a_class_and_the_study_goes_on(node: KubeNode, tmp_path: Path) -> None:
    """The network plugin enforces nothing: every run of sec1 is refused by its proof."""
    out = tmp_path / "out"
    with Kubelet(node):
        done = sweep(node, *words(tmp_path), fails=6)
        assert pods_left(node) == []
    assert "1 run of 2 failed in every attempt" in done.stderr.splitlines()[-1]
    assert set(runs_there(out)) == {"net0-sec0-c2-client-synthetic"}
    (kept,) = out.glob("attempts/*/failure.json")
    failure = json.loads(kept.read_text())
    assert failure["class"] == "not in force"
    assert "does this cluster's network plugin enforce NetworkPolicy?" in failure["message"]


def test_what_a_cluster_cannot_run_is_one_line_before_anything_is_made(
    node: KubeNode, tmp_path: Path
) -> None:
    def refused(factors: str, status: int, *more: str, **environment: str) -> str:
        plan = f"name: x\nrounds: 3\nclients: 2\nfactors: {factors}"
        done = sweep(node, *words(tmp_path, *more, plan=plan), fails=status, **environment)
        (line,) = done.stderr.splitlines()
        assert not (tmp_path / "out").exists()
        assert node.call("GET", "/api/v1/namespaces?labelSelector=ztprobe.run")["items"] == before
        return line

    before = node.call("GET", "/api/v1/namespaces?labelSelector=ztprobe.run")["items"]
    line = refused("{congestion_control: [cubic, bbr]}", 2)
    assert "net0-sec0-c2-bbr: congestion_control bbr is for this machine's own runtime" in line
    assert "--switch-level: is for this machine's own" in refused("{switch_level: [sec1@round2]}", 2)
    assert "sec2: this cluster's API server is Kubernetes v1.20" in refused("{level: [0, 2]}", 3)
    line = refused("{level: [0]}", 2, "--node", "elsewhere")
    assert (
        f"this is node elsewhere, as --node or NODE_NAME says, and the cluster has none of that name ({NODE})"
        in line
    )
    if not netem_supported():
        assert "puts no delay line on a cluster's node" in refused("{profile: [net2]}", 3)
    has_room(node, "300m")
    try:
        line = refused("{level: [0]}", 3)
    finally:
        has_room(node)
    assert f"net0-sec0-c2: its pods ask for 0.43 CPUs, and 0.3 are left on node {NODE}" in line
    assert "does not answer" in refused("{level: [0]}", 3, KUBECONFIG=str(node.kubeconfig("admin", port=1)))
