"""`ztprobe sweep --runtime kubernetes --agents`: a study's runs on two nodes at once, without root.

Both nodes are this machine, whose one boot id the API is told not of: here it is how runs at once come about,
and that they leave each other alone, and not how long their rounds take.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.kernel.agent_service import certificates
from tests.kernel.cluster import NODE, kube_node
from tests.kernel.cluster_agents import OTHER, SILENT, Agents, deploy_agents
from tests.kernel.kubelet import Kubelet, await_line
from tests.kernel.kubelet_logs import LogServer
from tests.kernel.test_cluster_experiment_nodes import serving
from tests.kernel.test_cluster_nodes import POWERLESS
from tests.kernel.test_cluster_sweep import pods_left, runs_there
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.store import load_run

pytestmark = pytest.mark.cluster

CELLS = {f"net0-sec{level}-s{seed}-c2-client-synthetic" for level in (0, 1) for seed in (1, 2)}
PLAN = """
name: four
rounds: 6
clients: 2
retries: 1
contention_retries: 0
factors: {level: [0, 1], seed: [1, 2], fl-client: [synthetic]}
"""


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """A cluster of two nodes, machines of their own as far as the API knows."""
    directory = tmp_path_factory.mktemp("at-once")
    with kube_node(directory) as node:
        tls = certificates(directory / "tls")
        deploy_agents(node, tls["collector"])
        logs = node.directory / "log" / "pods"
        logs.mkdir(parents=True)
        with LogServer(node, logs, (NODE, OTHER)):
            made = Agents(node, tls, directory)
            for name in (NODE, OTHER):
                tell(made, name, bootID=f"boot-of-{name}")
            yield made


def tell(agents: Agents, name: str, **facts: str) -> None:
    """What the API says of a node."""
    allocatable = {"cpu": "2", "memory": "8Gi", "pods": "110"}
    info = {"architecture": "amd64", "kernelVersion": "6.1", "bootID": "", **facts}
    status = {"allocatable": allocatable, "capacity": allocatable, "nodeInfo": info}
    agents.node.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})
    # As the node's controller does once it is ready.
    agents.node.call("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}})


def words(directory: Path) -> list[str]:
    (directory / "plan.yaml").write_text(PLAN)
    given = ["sweep", str(directory / "plan.yaml"), "--out", str(directory / "out")]
    return [*given, "--runtime", "kubernetes", "--agents"]


def begin(agents: Agents, given: list[str]) -> subprocess.Popen[str]:
    with entered(agents.node.netns):
        return subprocess.Popen(
            [*POWERLESS, sys.executable, "-m", "ztprobe", *given],
            cwd=REPO_DIR,
            env=agents.node.environment() | {"NODE_NAME": ""},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )


def await_both(begun: subprocess.Popen[str]) -> None:
    """Until rounds go on, on both nodes."""
    seen: set[str] = set()
    while seen != {NODE, OTHER}:
        *_, line = await_line(begun, " of 6 ", 240).splitlines()
        seen.add(line.partition(":")[0].strip())


def makers(begun: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that make a run each."""
    children = psutil.Process(begun.pid).children()
    return [one for one in children if "spawn_main" in " ".join(one.cmdline())]


def test_runs_are_made_on_two_nodes_at_once_and_killed_ones_are_made_again(
    agents: Agents, tmp_path: Path
) -> None:
    given, out = words(tmp_path), tmp_path / "out"
    with serving(agents), Kubelet(agents.node, also=(OTHER, SILENT), plugin="drop"):
        begun = begin(agents, given)
        await_both(begun)
        begun.send_signal(signal.SIGINT)
        assert begun.wait(90) == 128 + signal.SIGINT
        assert (pods_left(agents.node), runs_there(out)) == ([], {})

        begun = begin(agents, given)
        await_both(begun)
        one, other = makers(begun)
        begun.send_signal(signal.SIGKILL)
        begun.wait(60)
        psutil.wait_procs([one, other], timeout=90)  # they remove what they made, and end
        assert pods_left(agents.node) == []

        begun = begin(agents, given)
        await_both(begun)
        makers(begun)[0].kill()
        _, said = begun.communicate(timeout=600)
        assert begun.returncode == 0, said
        assert pods_left(agents.node) == []
    assert "workload: the process that made it has ended before it was through (SIGKILL)" in said
    assert ": waiting until that has ended" in said  # its agent did not know
    assert " was still on the cluster and is removed: 3 pods" in said
    assert set(runs_there(out)) == CELLS
    assert list((out / "on-cluster").iterdir()) == []
    assert not list(out.rglob("*partial*"))
    (kept,) = out.glob("attempts/*/failure.json")
    assert json.loads(kept.read_text())["class"] == "workload"
    report = json.loads((out / "study-report.json").read_text())
    assert (report["runtime"], report["nodes"]) == ("kubernetes", [NODE, OTHER])
    for cell in CELLS:
        record = load(out, cell)
        (node,) = record["nodes"]  # a run has a node to itself
        assert record["facts"]["node"] == node["name"]
        assert len(node["pods"]) == 3
        assert not any(record["loss"].values())
        assert record["enforcement"]["network_policy"] or "sec0" in cell


def load(out: Path, cell: str) -> dict[str, Any]:
    return load_run(out / "runs" / cell / "r01").meta


def test_which_nodes_take_part_is_said_and_those_of_one_machine_share_a_turn(
    agents: Agents, tmp_path: Path
) -> None:
    given = words(tmp_path)
    tell(agents, OTHER, bootID=f"boot-of-{NODE}", kernelVersion="5.10")
    try:
        with serving(agents), Kubelet(agents.node, also=(OTHER, SILENT), plugin="drop"):
            begun = begin(agents, given)
            read = await_line(begun, "round 1 of 6", 240)
            assert len(makers(begun)) == 1
            begun.send_signal(signal.SIGTERM)
            assert begun.wait(90) == 128 + signal.SIGTERM
            assert pods_left(agents.node) == []
    finally:
        tell(agents, OTHER, bootID=f"boot-of-{OTHER}")
    same = f"node {OTHER}: no run is made there: is the same machine as {NODE} (boot id boot-of-{NODE})"
    assert same in read
    assert f"node {SILENT}: no run is made there: the cluster has none of that name" in read
    assert f"runs are made on {NODE}, one at a time on each" in read
