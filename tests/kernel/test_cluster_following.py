"""Leases through agents that follow their selector: keepers ask the API with the agents' account."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tests.kernel.agent_service import certificates
from tests.kernel.cluster import NODE, KubeNode, kube_node
from tests.kernel.cluster_agents import OTHER, SILENT, Agents, deploy_agents
from tests.kernel.test_agent_service import wait_for
from tests.kernel.test_cluster_leases import CLEAR, CLIENT, CLIENTS, LAYOUT, SERVER, apply, run
from ztprobe.paths import MANIFESTS_DIR

pytestmark = pytest.mark.cluster

PODS = "/api/v1/namespaces/fl/pods"
ACCOUNT = "agent"


def grant(node: KubeNode) -> None:
    """What the manifests give the agents' account, and nothing else."""
    documents = list(yaml.safe_load_all((MANIFESTS_DIR / "agent/base/access.yaml").read_text()))
    (role,) = (one for one in documents if one["kind"] == "ClusterRole")
    (binding,) = (one for one in documents if one["kind"] == "ClusterRoleBinding")
    binding["subjects"] = [{"kind": "User", "name": ACCOUNT}]
    api = "/apis/rbac.authorization.k8s.io/v1"
    node.call("POST", f"{api}/clusterroles", role)
    node.call("POST", f"{api}/clusterrolebindings", binding)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """A server and a client on one node, nothing on the other."""
    directory = tmp_path_factory.mktemp("cluster")
    with kube_node(directory) as node:
        tls = certificates(directory / "tls")
        node.run("fl-server-0", SERVER, 10, layout=LAYOUT)
        node.run("fl-client-0", CLIENT, 11, layout=LAYOUT)
        deploy_agents(node, tls["collector"])
        node.call("DELETE", f"/api/v1/namespaces/ztprobe/pods/agent-{SILENT}", {"gracePeriodSeconds": 0})
        grant(node)
        yield Agents(node, tls, directory)


def ended(agents: Agents) -> None:
    """No lease is left, and no pod that a test made."""
    node = agents.node
    run(node, *CLEAR)
    assert node.qdiscs() == {}
    for name in (NODE, OTHER):
        assert not agents.state(name).exists()
    for name in [name for name in node.pods if name not in ("fl-server-0", "fl-client-0")]:
        remove(node, name)


def remove(node: KubeNode, name: str) -> None:
    node.kill(name)
    node.call("DELETE", f"{PODS}/{name}", {"gracePeriodSeconds": 0})


def await_qdiscs(node: KubeNode, *pods: str) -> None:
    wait_for(f"the profile is on {pods}", lambda: set(node.qdiscs()) == set(pods), 15)


def test_a_pod_that_comes_to_any_node_is_under_it(agents: Agents) -> None:
    node = agents.node
    account = str(node.kubeconfig(ACCOUNT))
    with (
        agents.serving(NODE, own_state=True, KUBECONFIG=account),
        agents.serving(OTHER, own_state=True, KUBECONFIG=account),
    ):
        said = apply(node, "net5", *CLIENTS, "--for", "2m")
        assert said["nodes"] == {NODE: ["fl/fl-client-0"], OTHER: []}
        assert said["notes"] == []
        assert node.qdiscs() == {"fl-client-0": "tbf"}
        node.run("fl-client-1", CLIENT, 12, layout=LAYOUT, node=OTHER)
        await_qdiscs(node, "fl-client-0", "fl-client-1")
        remove(node, "fl-client-0")  # and is scheduled elsewhere
        node.run("fl-client-0", CLIENT, 13, layout=LAYOUT, node=OTHER)
        await_qdiscs(node, "fl-client-0", "fl-client-1")

        def under() -> dict[str, list[str]]:
            told = run(node, "profile", "status", "--agents", "--json")["nodes"]
            return {name: one["leases"][0]["pods"] for name, one in told.items()}

        wait_for(
            "each is told by its node's agent",
            lambda: under() == {NODE: [], OTHER: ["fl/fl-client-1", "fl/fl-client-0"]},
            10,
        )
        told = run(node, "profile", "status", "--agents", "--json")["nodes"]
        (there,) = told[OTHER]["leases"]
        assert {one["pod"]: one["came_later"] for one in there["pods_since"]} == {
            "fl/fl-client-0": True,
            "fl/fl-client-1": True,
        }
        assert all(-1 < one["since_s"] < 300 for one in there["pods_since"])
        # What has no pods is nothing that a verification lacks.
        verdicts = run(node, "profile", "verify", "--probes", "300", "--agents", "--json")
        assert [(one["node"], one["passed"]) for one in verdicts["leases"]] == [(OTHER, True)]
        cleared = run(node, "profile", "clear", said["lease"], "--agents", "--json")
        assert cleared["nodes"] == {NODE: [said["lease"]], OTHER: [said["lease"]]}
        remove(node, "fl-client-0")
        node.run("fl-client-0", CLIENT, 11, layout=LAYOUT)
        ended(agents)


def test_where_an_agent_cannot_ask_it_holds_for_the_pods_that_it_was_told_of(agents: Agents) -> None:
    node = agents.node
    nobody = str(node.kubeconfig("nobody"))
    with (
        agents.serving(NODE, own_state=True, KUBECONFIG=nobody),
        agents.serving(OTHER, own_state=True, KUBECONFIG="", HOME="/nonexistent"),
    ):
        said = apply(node, "net5", *CLIENTS, "--for", "2m")
        assert said["nodes"] == {NODE: ["fl/fl-client-0"]}
        first, second = sorted(said["notes"])
        assert first.startswith(f"node {OTHER}: pods that come later or are restarted are not under it: no ")
        assert second.startswith("pods that come later or are restarted are not under it: ")
        assert 'User "nobody" cannot list resource "pods"' in second
        assert node.qdiscs() == {"fl-client-0": "tbf"}
        ended(agents)


def test_an_agent_follows_pods_of_its_node_alone(agents: Agents) -> None:
    """Both agents see every process here: what tells the nodes apart is the API's word."""
    node = agents.node
    account = str(node.kubeconfig(ACCOUNT))
    with agents.serving(NODE, own_state=True, KUBECONFIG=account):
        said = apply(node, "net5", *CLIENTS, "--for", "2m")
        assert said["nodes"] == {NODE: ["fl/fl-client-0"]}
        (note,) = said["notes"]  # there is no such pod there yet, so that hinders nobody
        assert note.startswith(f"node {OTHER}: pods that come later or are restarted are not under it: the ")
        assert "the agent at 10.98.0.3:7443 does not answer" in note
        agent = ("--agent", "10.98.0.2:7443")
        tls = agents.tls["collector"]
        files = ("--cert", str(tls.certificate), "--key", str(tls.key), "--ca", str(tls.authority))
        node.run("fl-client-2", CLIENT, 14, layout=LAYOUT, node=OTHER)
        node.run("fl-client-1", CLIENT, 12, layout=LAYOUT)
        await_qdiscs(node, "fl-client-0", "fl-client-1")
        run(node, "profile", "clear", *agent, *files, "--json")
        assert node.qdiscs() == {}
        assert not agents.state(NODE).exists()
        for name in ("fl-client-1", "fl-client-2"):
            remove(node, name)
