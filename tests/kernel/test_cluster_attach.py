"""A cluster's pods on the server's node, by a real API server: traced, their drops and policies explained."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.cluster import KubeNode, kube_node
from ztprobe.kernelnet.netlink import remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.rundir.store import load_run

pytestmark = pytest.mark.cluster

BYTES = "300000"
LABELS = ("--server", "app=fl-server", "--client", "app=fl-client", "-n", "fl")


def first_line(log: Path) -> str:
    give_up = time.monotonic() + 20
    while "\n" not in log.read_text():
        assert time.monotonic() < give_up, "the server does not listen"
        time.sleep(0.02)
    return log.read_text().splitlines()[0]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    """A server and a client here, and a client on another node, of which only the packets are here."""
    with kube_node(tmp_path_factory.mktemp("cluster")) as made, contextlib.ExitStack() as stack:
        server = made.run("fl-server-0", {"app": "fl-server"}, 10, layout="v2-systemd")
        made.run("fl-client-0", {"app": "fl-client"}, 11, layout="v2-systemd")
        made.create("fl-client-far", {"app": "fl-client"}, node="node-b")
        made.report("fl-client-far", "Running", "10.98.0.12")
        far = made.outside("far", 12)
        stack.callback(remove_netns, far.name)
        log = made.play("fl-server-0", "server", server.address, "100000", "2", BYTES, "0.1")
        port = json.loads(first_line(log).partition(" F ")[2])["port"]
        target = f"{server.address}:{port}"
        made.play("fl-client-0", "client", target, BYTES, "0.02")
        made.play(far, "client", target, BYTES, "0.02")
        yield made


def test_labels_are_pods_and_the_servers_log_tells_of_rounds(node: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--rounds", "4", "--out", str(out), "--json")
    done = node.ztprobe(
        "trace", "--attach", "--runtime", "kubernetes", *LABELS, *options, before=node.with_logs
    )
    report, run = json.loads(done.stdout), load_run(out)
    participants = {one["name"]: one for one in run.meta["attachment"]["participants"]}
    assert set(participants) == {"fl-server-0", "fl-client-0", "fl-client-far"}
    assert participants["fl-client-far"]["address"] == "10.98.0.12"
    assert run.meta["attachment"]["rounds_from"]["source"] == "events"
    assert len(report["rounds"]) >= 3
    for one in report["rounds"]:
        assert {client["client"] for client in one["clients"]} == {"fl-client-0", "fl-client-far"}
        assert one["residual_s"] <= 0.05 * one["duration_s"]


def test_peers_are_called_as_their_pods(node: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = node.ztprobe(
        *("trace", "--attach", "--runtime", "kubernetes", "-n", "fl", "--server", "app=fl-server"),
        *("--for", "4s", "--out", str(out), "--json"),
    )
    assert "rounds are told from the traffic" in done.stderr  # no kubelet's log is in sight
    names = {one["name"] for one in load_run(out).meta["attachment"]["participants"]}
    assert {"fl-server-0", "fl-client-0"} <= names


@pytest.mark.parametrize(
    ("arguments", "user", "said"),
    [
        (("--server", "app=x", "-n", "fl"), "admin", "--server app=x: matches no pod in namespace fl"),
        (("--server", "app=fl-client", "-n", "fl"), "admin", "nothing of it listens on a TCP port"),
        (("--server", "app=fl-server", "-n", "fl"), "nobody", "missing: the verb list on pods"),
        (("--server", "tier=far", "-n", "fl"), "admin", "is on node node-b, and this is node node-a"),
    ],
)
def test_what_cannot_be_traced_is_one_line(
    node: KubeNode, tmp_path: Path, arguments: tuple[str, ...], user: str, said: str
) -> None:
    if "tier=far" in arguments:
        node.create("fl-far", {"tier": "far"}, node="node-b")
        node.report("fl-far", "Running", "10.98.7.7")
    words = ("trace", "--attach", "--runtime", "kubernetes", *arguments, "--out", str(tmp_path / "run"))
    done = node.ztprobe(*words, user=user, fails=None)
    assert done.returncode in (2, 3), done.stderr
    line = done.stderr.splitlines()[-1]
    assert said in line, done.stderr
    assert not (tmp_path / "run").exists()


POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "server-port"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "fl-server"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": 50051}]}],
    },
}


@pytest.fixture(scope="module")
def policed(node: KubeNode) -> KubeNode:
    """A policy, and what a network plugin that enforces it does with another port."""
    node.call("POST", "/apis/networking.k8s.io/v1/namespaces/fl/networkpolicies", POLICY)
    chain = "type filter hook input priority 0\ntcp dport 50052 counter drop"
    rules = f"table inet plugin {{\nchain in {{\n{chain}\n}}\n}}"
    with entered(node.pods["fl-server-0"].netns):
        subprocess.run(["nft", rules], check=True)
    return node


def knock(node: KubeNode) -> None:
    with entered(node.pods["fl-client-0"].netns), socket.socket() as knocking:
        knocking.settimeout(0.3)
        with pytest.raises(TimeoutError):
            knocking.connect((node.pods["fl-server-0"].address, 50052))


def test_a_drop_between_a_clusters_pods_is_named_by_its_policy(policed: KubeNode) -> None:
    words = ("drops", "--runtime", "kubernetes", "-n", "fl", "--for", "8", "--json")
    words += ("--reason", "NETFILTER_DROP")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        watching = pool.submit(policed.ztprobe, *words)
        while not watching.done():
            knock(policed)
    drops = [json.loads(line) for line in watching.result().stdout.splitlines()]
    assert drops, watching.result().stderr
    assert "watching namespace fl: fl-client-0, fl-server-0" in watching.result().stderr
    for one in drops:
        assert (one["source"], one["target"], one["target_port"]) == ("fl-client-0", "fl-server-0", 50052)
        assert "fl/server-port" in json.dumps(one["explanation"])


def test_the_live_clusters_policies_are_explained_and_checked(policed: KubeNode) -> None:
    asked = (
        "policy",
        "explain",
        "--runtime",
        "kubernetes",
        "--from",
        "fl/fl-client-0",
        "--to",
        "fl/fl-server-0",
    )
    denied = policed.ztprobe(*asked, "--port", "50052/TCP", fails=3)
    assert "fl/server-port" in denied.stdout
    allowed = policed.ztprobe(*asked, "--port", "50051/TCP")
    assert "allowed" in allowed.stdout
    matrix = json.loads(policed.ztprobe("policy", "matrix", "--runtime", "kubernetes", "--json").stdout)
    assert "fl-server" in json.dumps(matrix)
    policed.ztprobe("policy", "check", "--runtime", "kubernetes", fails=None)


def test_a_cluster_that_may_not_be_asked_is_one_line(policed: KubeNode) -> None:
    words = ("policy", "check", "--runtime", "kubernetes")
    done = policed.ztprobe(*words, user="nobody", fails=3)
    assert "missing: the verb list on namespaces" in done.stderr.splitlines()[-1]


def test_a_saved_run_knows_the_policies_that_were_in_force(policed: KubeNode, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("trace", "--attach", "--runtime", "kubernetes", *LABELS, "--for", "6s", "--out", str(out), "-q")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        tracing = pool.submit(policed.ztprobe, *words)
        while not tracing.done():
            knock(policed)
    tracing.result()
    drops = json.loads(policed.ztprobe("drops", str(out), "--reason", "NETFILTER_DROP", "--json").stdout)
    assert drops
    for one in drops:
        assert (one["source"], one["target"], one["target_port"]) == ("fl-client-0", "fl-server-0", 50052)
        assert one["policies"] == ["NetworkPolicy fl/server-port"]
    asked = ("policy", "explain", "--run", str(out), "--from", "fl/fl-client-0", "--to", "fl/fl-server-0")
    policed.ztprobe(*asked, "--port", "50052/TCP", fails=3)
    proposed = tmp_path / "proposed.yaml"
    nothing_in = {**POLICY, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    proposed.write_text(json.dumps(nothing_in))
    simulated = policed.ztprobe("policy", "simulate", "-f", str(proposed), "-n", "fl", str(out), fails=None)
    assert "fl/fl-client-0" in simulated.stdout
