"""`ztprobe trace --runtime kubernetes --experiment ... --agents`: the whole job on two nodes, without root.

The server is on one node, its clients on another; the API server, the agents, the pods' processes and their
packets are real. The nodes share this machine's kernel: their clocks do not differ, and what is said of them
has to say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from analysis.causes.diagnosis import diagnose_run
from tests.kernel.agent_service import Service, certificates
from tests.kernel.cluster import NODE, KubeNode, kube_node
from tests.kernel.cluster_agents import OTHER, SILENT, Agents, deploy_agents
from tests.kernel.kube_cgroups import places_of
from tests.kernel.kubelet import Kubelet, await_line
from tests.kernel.kubelet_logs import LogServer
from tests.kernel.newer_api import NEWER_PORT, NewerApi
from tests.kernel.running_pod import LAYOUT
from tests.kernel.test_cluster_nodes import POWERLESS
from tests.kernel.test_cluster_trace import assert_nothing_unsaid, pods_left
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.store import load_run

pytestmark = pytest.mark.cluster

ROUNDS = 3
CLIENTS = ("fl-client-0", "fl-client-1")
PODS = {"fl-server", *CLIENTS}
APART = dict.fromkeys(CLIENTS, OTHER)
TRACE = ("trace", "--runtime", "kubernetes", "--agents", "--rounds", str(ROUNDS), "--clients", "2")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """A cluster of two nodes whose pods' logs come through the API."""
    directory = tmp_path_factory.mktemp("apart")
    with kube_node(directory) as node:
        tls = certificates(directory / "tls")
        deploy_agents(node, tls["collector"])
        logs = node.directory / "log" / "pods"
        logs.mkdir(parents=True)
        with LogServer(node, logs, (NODE, OTHER)):
            yield Agents(node, tls, directory)


@contextlib.contextmanager
def serving(agents: Agents) -> Iterator[dict[str, Service]]:
    """Both agents."""
    with agents.serving(NODE) as first, agents.serving(OTHER) as second:
        yield {NODE: first, OTHER: second}


def kubelet(node: KubeNode, **options: Any) -> Kubelet:
    return Kubelet(node, **{"nodes": APART, "also": (OTHER, SILENT), **options})


def trace(agents: Agents, out: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"before": POWERLESS, "NODE_NAME": "", **options}
    return agents.node.ztprobe(*TRACE, "--out", str(out), *words, **options)


def newer(node: KubeNode) -> dict[str, str]:
    return {"KUBECONFIG": str(node.kubeconfig("admin", port=NEWER_PORT))}


def closes(report: dict[str, Any]) -> None:
    """Every round's parts are its duration, and next to nothing is unexplained."""
    assert [one["round"] for one in report["rounds"]] == list(range(1, ROUNDS + 1))
    for one in report["rounds"]:
        parts_s = sum(one["components"].values()) + one["residual_s"]
        assert parts_s == pytest.approx(one["duration_s"], abs=1e-6)
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
        assert {client["client"] for client in one["clients"]} == set(CLIENTS)


def test_a_whole_job_on_two_nodes_leaves_the_run_directory_of_one(agents: Agents, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving(agents), kubelet(agents.node):
        done = trace(agents, out, "--experiment", "net0-sec0", "--json", "--no-baseline")
        assert pods_left(agents.node) == []
    report, run = json.loads(done.stdout), load_run(out)
    assert report["runtime"] == "kubernetes"
    closes(report)
    assert f"3 pods on {NODE}, {OTHER}" in done.stderr
    assert [(one["name"], sorted(one["pods"])) for one in run.meta["nodes"]] == [
        (NODE, ["fl-server"]),
        (OTHER, list(CLIENTS)),
    ]
    (clock,) = report["clocks"]
    assert clock["node"] == OTHER
    assert clock["packets"] > 0
    # One kernel has one clock: what is found must be nothing, within what is said.
    assert abs(clock["offset_ns"]) <= clock["uncertainty_ns"] < 5_000_000
    assert run.meta["topology"]["serves"] == {"fl-server": list(CLIENTS)}
    held_s = run.meta["facts"]["gate_held_s"]
    assert set(held_s) == PODS
    assert all(held_s[client] > held_s["fl-server"] > 0 for client in CLIENTS)
    # No application sent anything before probes and path were measured: clients came after the proof.
    connections = run.events["connections"]
    assert set(connections["pod"]) >= PODS
    application = connections[connections["local_port"] == 50051]
    assert application["opened_ns"].min() >= run.meta["proof"]["from_ns"]
    assert not any(run.meta["loss"].values()), run.meta["loss"]
    proven = run.meta["enforcement"]["network_policy"]
    assert [one["name"].partition(":")[0] for one in proven].count("open without policy") == 3
    assert all(one["passed"] for one in proven)
    measured = run.meta["emulation"]["details"]
    assert {(one["sender"], one["receiver"]) for one in measured["directions"]} == {
        *((client, "fl-server") for client in CLIENTS),
        *(("fl-server", client) for client in CLIENTS),
    }
    assert all(one["received"] >= 0.99 * one["sent"] for one in measured["directions"])
    assert set(measured["wall_clocks_ahead_ms"]) == {NODE, OTHER}
    assert abs(measured["wall_clocks_ahead_ms"][OTHER]) < 5
    assert len(run.clients) >= 2 * ROUNDS


@contextlib.contextmanager
def burner() -> Iterator[int]:
    """Somebody else's process, which computes all the time."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def ran_ns(pid: int) -> int:
    """By the scheduler's own account of a process of one thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def pods_ran_ns(node: KubeNode) -> int:
    """All that ever were, by the cgroup that theirs are below; the kernel keeps what is gone."""
    ((top,), _) = places_of(node.tag, "", LAYOUT, "")
    stat = top / "kubepods.slice" / "cpu.stat"
    return int(stat.read_text().split()[1]) * 1000 if stat.exists() else 0


def test_who_else_computes_on_a_node_is_told_and_the_deployment_is_not_foreign(
    agents: Agents, tmp_path: Path
) -> None:
    """Both agents see all of the one kernel, and each watches its own pods alone."""
    out = tmp_path / "run"
    with serving(agents), kubelet(agents.node), burner() as pid:
        begun_ns, began_at_ns = ran_ns(pid), time.monotonic_ns()
        words = ("--experiment", "net0-sec0", "--json", "--no-baseline", "--wait-for-quiet", "1")
        with ThreadPoolExecutor() as pool:
            tracing = pool.submit(trace, agents, out, *words)
            used = []  # when, and by all pods so far
            while not tracing.done():
                used.append((time.monotonic_ns(), pods_ran_ns(agents.node)))
                time.sleep(0.1)
            done = tracing.result()
        burnt = (ran_ns(pid) - begun_ns) / (time.monotonic_ns() - began_at_ns)  # CPUs
        assert pods_left(agents.node) == []
    report, run = json.loads(done.stdout), load_run(out)
    assert "is busy: other processes use" in done.stderr
    judged = report["contention"]
    assert (judged["known"], judged["contended"]) == (True, True)
    assert judged["run"]["busy"][0] == "foreign_share"
    assert judged["run"]["foreign_cpus"] >= 0.7 * burnt > 0.1
    assert f"{judged['run']['node']}'s CPU time" in judged["said"][0]
    assert all(one["machine"]["foreign_share"] > 0 for one in report["rounds"])
    nodes = {one["node"]: one for one in run.meta["machine_load"]["nodes"]}
    assert {name: one["same_kernel_as"] for name, one in nodes.items()} == {NODE: [OTHER], OTHER: [NODE]}
    assert run.meta["machine_load"]["waited_s"] >= 1
    table = run.events["machine"]
    assert {name: len(rows) for name, rows in table.groupby("node")} == dict.fromkeys(
        (NODE, OTHER), len(table) // 2
    )
    own = table[table["node"] == NODE]
    assert (own["foreign_ns"].to_numpy() == table[table["node"] == OTHER]["foreign_ns"].to_numpy()).all()
    # In the rounds, by the cgroup above all pods, which no agent reads.
    begin_ns, end_ns = run.rounds[0]["time_monotonic_ns"], run.rounds[-1]["time_monotonic_ns"]
    inside = own[(own["from_ns"] >= begin_ns) & (own["to_ns"] <= end_ns)]
    edges_ns = [inside["from_ns"].min(), inside["to_ns"].max()]
    used_ns = float(np.diff(np.interp(edges_ns, *zip(*used, strict=True)))[0])
    assert used_ns > 0.5e9
    assert inside["deployment_ns"].sum() == pytest.approx(used_ns, rel=0.05)
    # Whatever is spent is somebody's: what is foreign is neither the pods' nor the agents' nor the command's.
    assert own["ztprobe_ns"].sum() > 0
    assert own["foreign_ns"].sum() <= own["tasks_ns"].sum() - own["deployment_ns"].sum()


def test_a_rate_is_in_force_on_both_nodes_behind_the_gates(agents: Agents, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving(agents), kubelet(agents.node):
        trace(agents, out, "--experiment", "net5-sec0", "--rounds", "1", "-q", "--no-baseline")
        assert pods_left(agents.node) == []
    emulation = load_run(out).meta["emulation"]
    assert emulation["backend"] == "tbf"
    assert {one for one in emulation["observed"] if one.startswith("fl-")} == PODS
    assert {one["kind"] for name, one in emulation["observed"].items() if name in PODS} == {"tbf"}
    rates = {one["sender"]: one["goodput_mbit"] for one in emulation["details"]["rates"]}
    assert set(rates) == PODS
    assert all(rate == pytest.approx(10, rel=0.05) for rate in rates.values()), rates


def test_policies_between_nodes_are_proven_beside_the_baseline(agents: Agents, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving(agents), kubelet(agents.node, plugin="drop"):
        report = json.loads(trace(agents, out, "--experiment", "net0-sec1", "-q", "--json").stdout)
        assert pods_left(agents.node) == []
    assert report["overhead"]["baseline"] == "net0-sec0"
    assert all(one["passed"] for one in load_run(out / "baseline").meta["enforcement"]["network_policy"])
    proven = {one["name"]: one for one in load_run(out).meta["enforcement"]["network_policy"]}
    assert all(one["passed"] for one in proven.values()), proven
    forbidden = proven["forbidden: fl-client-0 -> fl-server:50052/tcp"]
    assert forbidden["observed"] == "timed out, which is listened on"


def test_a_plugin_that_enforces_nothing_is_found_out(agents: Agents, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving(agents), kubelet(agents.node):
        done = trace(agents, out, "--experiment", "net0-sec1", "--no-baseline", fails=5)
        assert pods_left(agents.node) == []
    line = done.stderr.splitlines()[-1]
    assert "forbidden: fl-client-0 -> fl-server:50052/tcp: expected no connection, observed connected" in line
    assert "failed" in json.loads((out / "run.json").read_text())


def test_mutual_tls_between_nodes_is_proven(agents: Agents, tmp_path: Path) -> None:
    out, node = tmp_path / "run", agents.node
    with serving(agents), kubelet(node), NewerApi(node):
        words = ("--experiment", "net0-sec2", "--no-baseline", "--json")
        report = json.loads(trace(agents, out, *words, **newer(node)).stdout)
        assert pods_left(node) == []
    closes(report)
    run = load_run(out)
    proven = {one["name"]: one for one in run.meta["enforcement"]["mtls"]}
    assert len(proven) == 7
    assert all(one["passed"] for one in proven.values()), proven
    assert set(run.meta["topology"]["behind_sidecar"]) == PODS
    assert all(one["components"]["proxy"] > 0 for one in report["rounds"])


def test_all_of_sec3_is_tried_between_nodes(agents: Agents, tmp_path: Path) -> None:
    """The older API server, which decides, has no Pod Security; all else of sec3 is there."""
    out, node = tmp_path / "run", agents.node
    with serving(agents), kubelet(node, plugin="drop"), NewerApi(node):
        done = trace(agents, out, "--experiment", "net0-sec3", "--no-baseline", fails=5, **newer(node))
        assert pods_left(node) == []
    assert "expected refused by Pod Security, observed admitted" in done.stderr.splitlines()[-1]
    found = json.loads((out / "run.json").read_text())["enforcement"]
    passed = {one["name"]: one["passed"] for kind in ("network_policy", "mtls") for one in found[kind]}
    assert len(passed) == 5 + 7
    assert all(passed.values()), passed
    privileged, *rights = found["hardening"]
    assert not privileged["passed"]
    assert all(one["passed"] for one in rights)


def test_what_agents_cannot_do_is_one_line_and_nothing_is_left(agents: Agents, tmp_path: Path) -> None:
    out, node = tmp_path / "run", agents.node
    words = ("--experiment", "net0-sec0", "--no-baseline")
    for option, status, said in (
        (("--node", NODE), 2, "--node says which node this is"),
        (("--agents-in", "fl"), 3, "no agent runs in namespace fl"),
    ):
        done = trace(agents, out, *words, *option, fails=status)
        assert said in done.stderr.splitlines()[-1]
    nowhere = {"fl-client-1": "node-d"}
    with serving(agents), kubelet(node, nodes=nowhere):
        done = trace(agents, out, *words, fails=3)
        assert (
            f"fl-client-1 on node-d: no agent was asked there (agents: {NODE}, {OTHER}"
            in (done.stderr.splitlines()[-1])
        )
        assert pods_left(node) == []
    if not netem_supported():
        with serving(agents), kubelet(node):
            done = trace(agents, out, "--experiment", "net2-sec0", "--no-baseline", fails=3)
            assert "its kernel has no netem" in done.stderr.splitlines()[-1]
            assert pods_left(node) == []
    with agents.serving(NODE), kubelet(node, nodes={"fl-client-1": SILENT}):  # what listens nowhere
        done = trace(agents, out, *words, fails=3)
        assert "does not answer" in done.stderr.splitlines()[-1]
        assert pods_left(node) == []
    assert not out.exists()


def begin(
    agents: Agents, out: Path, experiment: str = "net0-sec0", *options: str, rounds: int = 500
) -> subprocess.Popen[str]:
    """A trace whose rounds have begun when this returns."""
    words = [*POWERLESS, sys.executable, "-m", "ztprobe", *TRACE, "--experiment", experiment]
    environment = {name: value for name, value in agents.node.environment().items() if name != "NODE_NAME"}
    with entered(agents.node.netns):
        begun = subprocess.Popen(
            [*words, "--rounds", str(rounds), "--out", str(out), "--no-baseline", *options],
            cwd=REPO_DIR,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
    await_line(begun, f"round {1:>{len(str(rounds))}} of {rounds}", 180)
    return begun


def test_a_client_that_is_stopped_is_a_stall_with_its_cause(agents: Agents, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving(agents), kubelet(agents.node) as pods:
        begun = begin(agents, out, "net0-sec0", "--stall-after", "4", rounds=4)
        client = pods.pid("fl-client-0", "client")
        os.kill(client, signal.SIGSTOP)
        try:
            said = await_line(begun, "stands still", 60).splitlines()[-1]
        finally:
            os.kill(client, signal.SIGCONT)
        _, rest = begun.communicate(timeout=180)
        assert begun.returncode == 0, rest
        assert pods_left(agents.node) == []
    assert "fl-server waits for fl-client-0" in said
    assert "fl-client-0 is stopped by a signal" in said
    assert "stands still" not in rest  # rounds go on
    run, report = load_run(out), json.loads((out / "report.json").read_text())
    (stall,) = run.meta["stalls"]
    assert stall["words"] in said
    assert (stall["waiting"], stall["waits_for"]) == ("fl-server", ["fl-client-0"])
    assert stall["states"] == {"fl-client-0": "stopped by a signal"}
    assert {one["source"].partition(":")[0] for one in stall["connections"]} <= PODS
    assert len(stall["connections"]) == 1
    # By the server's clock, as its round's events.
    begun_ns, ended_ns = (
        next(
            e["time_monotonic_ns"]
            for e in run.rounds
            if (e["event"], e.get("round")) == (kind, stall["round"])
        )
        for kind in ("round_start", "round_end")
    )
    assert begun_ns - 1e9 <= stall["since_ns"] < stall["at_ns"] <= ended_ns
    assert stall["at_ns"] - stall["since_ns"] >= 4e9
    assert any(note.startswith("Stalled: ") for note in report["notes"])
    found = diagnose_run(run)
    assert ("stall", [stall["round"]]) in [(one["kind"], one["rounds"]) for one in found["troubles"]]
    assert (found["causes"][0]["id"], found["causes"][0]["pods"]) == (
        "application.process_stopped",
        ["fl-client-0"],
    )


def test_an_agent_that_dies_ends_the_run_and_what_was_seen_is_kept(agents: Agents, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving(agents) as served, kubelet(agents.node):
        begun = begin(agents, out, "net5-sec0")
        (worker,) = (
            child
            for child in psutil.Process(served[OTHER].process.pid).children(recursive=True)
            if "ztprobe.agent.remote" in child.cmdline()
        )
        worker.kill()
        assert begun.stderr is not None
        line = begun.stderr.read().splitlines()[-1]
        assert begun.wait(120) == 5
        assert pods_left(agents.node) == []
    assert f"node {OTHER}: the agent has ended" in line
    run = json.loads((out / "run.json").read_text())
    assert OTHER in run["failed"]["reason"]
    assert run["coverage"] == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_ends_the_command_leaves_nothing_unsaid(
    agents: Agents, tmp_path: Path, how: signal.Signals
) -> None:
    node = agents.node
    with serving(agents), kubelet(node):
        begun = begin(agents, tmp_path / "run", "net5-sec0")
        assert_nothing_unsaid(node, begun, how)
