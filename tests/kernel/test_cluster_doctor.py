"""`ztprobe doctor --runtime kubernetes`: nodes asked through their agents, the rest of the API server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.kernel.agent_service import certificates
from tests.kernel.cluster import NODE, kube_node
from tests.kernel.cluster_agents import OTHER, SILENT, Agents, deploy_agents
from ztprobe.preflight import choose_hooks, collect

pytestmark = pytest.mark.cluster

BARE = "node-d"
DOCTOR = ("doctor", "--runtime", "kubernetes")
DAEMONSETS = "/apis/apps/v1/namespaces/kube-system/daemonsets"
SELECTOR = {"app": "plugin"}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """Two agents that answer, one that does not, a node without one, and a plugin."""
    directory = tmp_path_factory.mktemp("cluster")
    with kube_node(directory) as node:
        tls = certificates(directory / "tls")
        deploy_agents(node, tls["collector"])
        for name in (NODE, OTHER, SILENT, BARE):
            node.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})
        plugin = {
            "metadata": {"name": "kube-router", "namespace": "kube-system"},
            "spec": {
                "selector": {"matchLabels": SELECTOR},
                "template": {
                    "metadata": {"labels": SELECTOR},
                    "spec": {"containers": [{"name": "plugin", "image": "none"}]},
                },
            },
        }
        node.call("POST", "/api/v1/namespaces", {"metadata": {"name": "kube-system"}}, check=False)
        node.call("POST", DAEMONSETS, plugin)
        held = Agents(node, tls, directory)
        with held.serving(NODE), held.serving(OTHER):
            yield held


def test_each_node_says_what_it_offers(agents: Agents) -> None:
    done = agents.node.ztprobe(*DOCTOR, "--json", fails=None, NODE_NAME="")
    assert done.returncode == 3, done.stderr
    said = json.loads(done.stdout)
    assert set(said["nodes"]) == {NODE, OTHER, SILENT, BARE}
    machine = collect()  # they share this machine's kernel
    hooks = {one.signal: one.hook for one in choose_hooks(machine.kernel)}
    for name in (NODE, OTHER):
        node = said["nodes"][name]
        assert {one["signal"]: one["hook"] for one in node["signals"]} == hooks
        assert node["kernel"] == machine.kernel.release
        assert (node["delay"] == "netem") == bool(machine.kernel.network.netem)
    assert said["nodes"][BARE] == {"problem": "has no agent"}
    assert "does not answer" in said["nodes"][SILENT]["problem"]
    (plugin,) = said["network_plugins"]
    assert (plugin["name"], plugin["enforces"]) == ("kube-router", True)
    assert len(said["problems"]) == 2 + 2 * sum(hook is None for hook in hooks.values())


def test_it_is_a_table_for_people(agents: Agents) -> None:
    done = agents.node.ztprobe(*DOCTOR, fails=None, NODE_NAME="")
    header, *_ = done.stdout.splitlines()
    assert header.split() == ["signal", NODE, OTHER]
    assert f"- node {BARE}: has no agent" in done.stdout.splitlines()
    assert (
        "network plugin: kube-router (kube-system/kube-router), which enforces NetworkPolicy" in done.stdout
    )


def test_who_may_not_ask_gets_one_line(agents: Agents) -> None:
    done = agents.node.ztprobe(*DOCTOR, user="nobody", fails=None, NODE_NAME="")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and "pods" in done.stderr
    lost = agents.node.ztprobe("doctor", "--agents", fails=None)
    assert lost.returncode == 2
    assert "add --runtime kubernetes" in lost.stderr


def test_each_agent_says_what_it_holds(agents: Agents) -> None:
    done = agents.node.ztprobe("agent", "status", "--agents", "--json", fails=3, NODE_NAME="")
    said = json.loads(done.stdout)["nodes"]
    assert set(said) == {NODE, OTHER, SILENT}
    assert "does not answer" in said[SILENT]["problem"]
    for name in (NODE, OTHER):
        assert said[name]["node"] == name
        assert said[name]["memory"]["resident_bytes"] > 1 << 20
        assert said[name]["sessions"] == said[name]["leases"] == []
    lines = agents.node.ztprobe("agent", "status", "--agents", fails=3, NODE_NAME="").stdout.splitlines()
    assert [line.split(",")[0].split(":")[0] for line in lines if line.startswith("agent ")] == [
        f"agent 0.1.0 on {NODE}",
        f"agent 0.1.0 on {OTHER}",
        f"agent on {SILENT}",
    ]
