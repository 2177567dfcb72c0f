"""`ztprobe trace --runtime kubernetes --experiment ...`: the whole job on one node, by a real API server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.cluster import KubeNode, kube_node
from tests.kernel.kubelet import Kubelet, await_line
from tests.kernel.kubelet_logs import LogServer
from tests.kernel.newer_api import NEWER_PORT, NewerApi
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.store import load_run

pytestmark = pytest.mark.cluster

ROUNDS = 3
TRACE = ("trace", "--runtime", "kubernetes", "--rounds", str(ROUNDS), "--clients", "2")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    with kube_node(tmp_path_factory.mktemp("trace")) as made:
        (made.directory / "log" / "pods").mkdir(parents=True)
        yield made


def pods_left(node: KubeNode) -> list[str]:
    found = node.call("GET", "/api/v1/pods?labelSelector=ztprobe.run")["items"]
    return [pod["metadata"]["name"] for pod in found]


def assert_nothing_unsaid(node: KubeNode, begun: subprocess.Popen[str], how: signal.Signals) -> None:
    """What a signal ended left nothing, or can be named and removed."""
    begun.send_signal(how)
    assert begun.stderr is not None
    begun.stderr.read()
    begun.wait(60)
    if how == signal.SIGINT:
        assert pods_left(node) == []
        return
    found = node.call("GET", "/api/v1/pods?labelSelector=ztprobe.run")["items"]
    (run,) = {one["metadata"]["labels"]["ztprobe.run"] for one in found}
    said = node.ztprobe("clean").stdout
    assert f"{run}: may still be on its cluster, in namespace fl-{run}: ztprobe undeploy {run}" in said
    assert run in json.loads(node.ztprobe("undeploy", "--json").stdout)


def trace(node: KubeNode, out: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return node.ztprobe(*TRACE, "--out", str(out), *words, before=node.with_logs, **options)


def refused(node: KubeNode, out: Path, *words: str, status: int, **kubelet: Any) -> str:
    """The last line of a trace that does not come about; nothing of it is left."""
    with Kubelet(node, **kubelet):
        done = trace(node, out, *words, "--no-baseline", fails=status)
        assert pods_left(node) == []
    assert not out.exists()
    return done.stderr.splitlines()[-1]


def test_a_whole_job_leaves_the_run_directory_of_a_local_one(node: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Kubelet(node):
        done = trace(node, out, "--experiment", "net0-sec0", "--json", "--no-baseline")
        assert pods_left(node) == []
    report, run = json.loads(done.stdout), load_run(out)
    assert report["runtime"] == "kubernetes"
    assert [one["round"] for one in report["rounds"]] == list(range(1, ROUNDS + 1))
    for one in report["rounds"]:
        parts_s = sum(one["components"].values()) + one["residual_s"]
        assert parts_s == pytest.approx(one["duration_s"], abs=1e-6)
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
        assert {client["client"] for client in one["clients"]} == {"fl-client-0", "fl-client-1"}
    assert run.meta["topology"]["serves"] == {"fl-server": ["fl-client-0", "fl-client-1"]}
    held_s = run.meta["facts"]["gate_held_s"]
    assert set(held_s) == {"fl-server", "fl-client-0", "fl-client-1"}
    # No application sent anything before probes and path were measured: clients came after the proof.
    assert all(held_s[f"fl-client-{i}"] > held_s["fl-server"] > 0 for i in range(2))
    connections = run.events["connections"]
    proof = run.meta["proof"]
    application = connections[connections["local_port"] == 50051]
    assert not application.empty
    assert application["opened_ns"].min() >= proof["from_ns"]
    proven = run.meta["enforcement"]["network_policy"]
    assert [one["name"].partition(":")[0] for one in proven].count("open without policy") == 3
    assert all(one["passed"] for one in proven)
    assert len(run.clients) >= 2 * ROUNDS
    assert "let go, after" in done.stderr


@pytest.mark.parametrize("plugin", ["drop", "reject"])
def test_policies_that_are_enforced_are_proven(node: KubeNode, tmp_path: Path, plugin: str) -> None:
    out, alone = tmp_path / "run", plugin == "reject"
    with Kubelet(node, plugin=plugin):
        words = ("--experiment", "net0-sec1", "-q", "--json", *(["--no-baseline"] if alone else []))
        report = json.loads(trace(node, out, *words).stdout)
        assert pods_left(node) == []
    run = load_run(out)
    if not alone:  # the baseline is a run of its own, in a namespace that none of these policies is in
        assert report["overhead"]["baseline"] == "net0-sec0"
        before = load_run(out / "baseline").meta
        assert before["facts"]["namespace"] != run.meta["facts"]["namespace"]
        assert all(one["passed"] for one in before["enforcement"]["network_policy"])
    proven = {one["name"]: one for one in run.meta["enforcement"]["network_policy"]}
    assert all(one["passed"] for one in proven.values())
    forbidden = proven["forbidden: fl-client-0 -> fl-server:50052/tcp"]
    stopped = "timed out" if plugin == "drop" else "refused"
    assert forbidden["observed"] == f"{stopped}, which is listened on"
    kinds = [one["kind"] for one in run.meta["enforcement"]["details"]["objects"]]
    assert kinds.count("NetworkPolicy") >= 4
    assert len(run.rounds) > ROUNDS


def test_a_plugin_that_enforces_nothing_is_found_out(node: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Kubelet(node):
        done = trace(node, out, "--experiment", "net0-sec1", "--no-baseline", fails=5)
        assert pods_left(node) == []
    line = done.stderr.splitlines()[-1]
    assert "forbidden: fl-client-0 -> fl-server:50052/tcp: expected no connection, observed connected" in line
    assert "does this cluster's network plugin enforce NetworkPolicy?" in line
    failed = json.loads((out / "run.json").read_text())["failed"]
    assert "does this cluster's network plugin enforce NetworkPolicy?" in failed["reason"]


def test_an_image_that_cannot_be_pulled_ends_it(node: KubeNode, tmp_path: Path) -> None:
    words = ("--experiment", "net0-sec0", "--image", "example.org/fl:none")
    line = refused(node, tmp_path / "run", *words, status=6, image_problem="ImagePullBackOff")
    assert "the image example.org/fl:none cannot be pulled (ImagePullBackOff): no such image" in line


def test_what_the_scheduler_says_ends_it(node: KubeNode, tmp_path: Path) -> None:
    nowhere = {"fl-client-1": ""}
    line = refused(node, tmp_path / "run", "--experiment", "net0-sec0", status=6, nodes=nowhere)
    assert "fl-client-1 cannot be scheduled: 0/1 nodes: Insufficient cpu." in line


def test_pods_of_other_nodes_are_named(node: KubeNode, tmp_path: Path) -> None:
    apart = {"fl-client-1": "node-b"}
    words = ("--experiment", "net0-sec0")
    with Kubelet(node, nodes=apart):
        done = trace(node, tmp_path / "run", *words, fails=2)
    line = done.stderr.splitlines()[-1]
    assert "fl-client-1 on node-b, and this is node node-a" in line
    assert "--node node-a keeps the whole run here" in line


def test_what_admission_says_ends_it(node: KubeNode, tmp_path: Path) -> None:
    node.call("POST", "/api/v1/namespaces", {"metadata": {"name": "full"}})
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    node.call("POST", "/api/v1/namespaces/full/resourcequotas", quota)
    status = {"status": {"hard": quota["spec"]["hard"], "used": {"pods": "0"}}}  # type: ignore[index]
    node.call("PATCH", "/api/v1/namespaces/full/resourcequotas/none/status", status)
    line = refused(node, tmp_path / "run", "--experiment", "net0-sec0", "-n", "full", status=3)
    assert "refuses to apply Pod full/fl-server (403): " in line
    assert "exceeded quota: none" in line
    services = node.call("GET", "/api/v1/namespaces/full/services")["items"]
    assert services == []


def test_what_is_not_allowed_or_not_to_be_had_is_one_line(node: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = trace(node, out, "--experiment", "net0-sec0", fails=3, user="nobody")
    assert "missing: the verb patch on namespaces" in done.stderr.splitlines()[-1]
    done = trace(node, out, "--experiment", "net0-sec3", fails=3)  # its baseline would have run there
    (line,) = done.stderr.splitlines()
    assert "sec3: this cluster's API server is Kubernetes v1.20" in line
    assert "need 1.29 or newer; sec0 and sec1 run there" in line
    done = trace(node, out, "--experiment", "net0-sec0", "--switch-level", "sec1@round2", fails=2)
    assert "is for runs on this machine" in done.stderr.splitlines()[-1]
    if not netem_supported():
        done = trace(node, out, "--experiment", "net2-sec0", fails=3)
        assert "trace puts no delay line on a cluster's node" in done.stderr.splitlines()[-1]
    assert not out.exists()


def test_logs_that_are_not_here_come_through_the_api(node: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Kubelet(node) as kubelet, LogServer(node, kubelet.log) as logs:
        logs.breaks = 4
        words = (*TRACE, "--out", str(out), "--experiment", "net0-sec0", "--no-baseline")
        done = node.ztprobe(*words)  # /var/log/pods is this machine's own, and has none of them
        assert logs.breaks == 0
        assert logs.streams > 4
    assert "the pods' logs are read through the API" in done.stderr
    run = load_run(out)
    ends = [one["round"] for one in run.rounds if one["event"] == "round_end"]
    assert ends == list(range(1, ROUNDS + 1))
    times = [one["time_monotonic_ns"] for one in run.rounds]
    assert times == sorted(times)
    assert len(run.clients) >= 2 * ROUNDS


def test_a_rate_is_in_force_behind_the_gates(node: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Kubelet(node):
        trace(node, out, "--experiment", "net5-sec0", "--rounds", "1", "-q", "--no-baseline")
    emulation = load_run(out).meta["emulation"]
    assert emulation["backend"] == "tbf"
    assert {one for one in emulation["observed"] if one.startswith("fl-")} == {
        *("fl-server", "fl-client-0", "fl-client-1")
    }


def begin(
    node: KubeNode, out: Path, experiment: str = "net0-sec0", **environment: str
) -> subprocess.Popen[str]:
    """A trace of many rounds, which have begun when this returns."""
    words = [*node.with_logs, sys.executable, "-m", "ztprobe", *TRACE, "--experiment", experiment]
    with entered(node.netns):
        begun = subprocess.Popen(
            [*words, "--rounds", "500", "--out", str(out), "--no-baseline"],
            cwd=REPO_DIR,
            env=node.environment() | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
    await_line(begun, "round   1 of 500", 180)
    return begun


def test_a_client_that_is_killed_ends_the_run_and_what_was_seen_is_kept(
    node: KubeNode, tmp_path: Path
) -> None:
    with Kubelet(node) as kubelet:
        begun = begin(node, tmp_path / "run")
        kubelet.kill("fl-client-1")
        assert begun.stderr is not None
        line = begun.stderr.read().splitlines()[-1]
        assert begun.wait(60) == 6
        assert pods_left(node) == []
    assert "fl-client-1/client was killed by SIGKILL" in line
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {one["process"]: one["status"] for one in run["exits"]}["fl-client-1/client"] == -9


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_ends_the_command_leaves_nothing_unsaid(
    node: KubeNode, tmp_path: Path, how: signal.Signals
) -> None:
    with Kubelet(node):
        begun = begin(node, tmp_path / "run")
        assert_nothing_unsaid(node, begun, how)


def newer(node: KubeNode) -> dict[str, str]:
    """Of a command that asks an API server which knows sidecars."""
    return {"KUBECONFIG": str(node.kubeconfig("admin", port=NEWER_PORT))}


def test_sidecars_speak_mutual_tls_and_that_is_proven(node: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Kubelet(node), NewerApi(node):
        words = ("--experiment", "net0-sec2", "--no-baseline", "--json")
        report = json.loads(trace(node, out, *words, **newer(node)).stdout)
        assert pods_left(node) == []
    run = load_run(out)
    proven = {one["name"]: one for one in run.meta["enforcement"]["mtls"]}
    assert all(one["passed"] for one in proven.values()), proven
    server = "fl-server:50051"
    assert list(proven) == [
        f"fl-client-0 with its certificate -> {server}",
        f"fl-client-0 without a certificate -> {server}",
        f"fl-client-0 with another account's certificate -> {server}",
        f"fl-client-0 with another authority's certificate -> {server}",
        f"fl-client-0 in plain HTTP/2 -> {server}",
        "fl-client-0 past the sidecar -> fl-server:15051",
        "fl-server's proxy verified fl-client-0",
    ]
    namespace = run.meta["facts"]["namespace"]
    identity = f"spiffe://cluster.local/ns/{namespace}/sa/fl-server"
    assert identity in proven[f"fl-client-0 with its certificate -> {server}"]["observed"]
    pods = {"fl-server", "fl-client-0", "fl-client-1"}
    assert set(run.meta["topology"]["behind_sidecar"]) == pods
    assert {one["pod"] for one in run.meta["facts"]["certificates"]} == pods
    assert {one["process"].partition("/")[2] for one in run.meta["exits"]} <= {"client", "server"}
    held_s = run.meta["facts"]["gate_held_s"]
    assert all(held_s[f"fl-client-{i}"] > held_s["fl-server"] > 0 for i in range(2))
    assert [one["round"] for one in report["rounds"]] == list(range(1, ROUNDS + 1))
    for one in report["rounds"]:
        parts_s = sum(one["components"].values()) + one["residual_s"]
        assert parts_s == pytest.approx(one["duration_s"], abs=1e-6)
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
        assert one["components"]["proxy"] > 0
    # Sidecars are up before any application: whoever connects is let in at once.
    assert report["connection_setup"]["components"]["tls_handshake"]["median_s"] < 1


def test_privileged_pods_that_are_let_in_are_found_out(node: KubeNode, tmp_path: Path) -> None:
    """The older API server, which decides, has no Pod Security; all else of sec3 is there."""
    out = tmp_path / "run"
    with Kubelet(node, plugin="drop"), NewerApi(node):
        done = trace(node, out, "--experiment", "net0-sec3", "--no-baseline", fails=5, **newer(node))
        assert pods_left(node) == []
    line = done.stderr.splitlines()[-1]
    assert "forbidden: a privileged pod in fl-" in line
    assert "expected refused by Pod Security, observed admitted" in line
    found = json.loads((out / "run.json").read_text())["enforcement"]
    passed = {one["name"]: one["passed"] for kind in ("network_policy", "mtls") for one in found[kind]}
    assert passed
    assert all(passed.values()), passed
    privileged, *rights = found["hardening"]
    assert not privileged["passed"]
    assert [one["name"].partition(": ")[2] for one in rights if one["passed"]] == [
        "ServiceAccount fl-client -> list pods",
        "ServiceAccount fl-client -> get configmaps/fl-workload",
        "ServiceAccount fl-server -> list pods",
        "ServiceAccount fl-server -> get configmaps/fl-workload",
    ]


def test_a_sidecar_that_is_killed_ends_the_run(node: KubeNode, tmp_path: Path) -> None:
    with Kubelet(node) as kubelet, NewerApi(node):
        begun = begin(node, tmp_path / "run", "net0-sec2", **newer(node))
        kubelet.kill("fl-client-1", "proxy")
        assert begun.stderr is not None
        line = begun.stderr.read().splitlines()[-1]
        assert begun.wait(60) == 6
        assert pods_left(node) == []
    assert "fl-client-1/proxy was killed by SIGKILL" in line
