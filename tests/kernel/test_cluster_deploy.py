"""`ztprobe deploy` and `undeploy` against a real API server: applied, refused in one line, taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.cluster import KubeNode, kube_node
from ztprobe.kernelnet.netns import entered
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.changes import changing
from ztprobe.runtime.cluster.experiment import experiment_documents
from ztprobe.runtime.cluster.hardening import prove_hardening
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local.workload import SETTINGS

pytestmark = pytest.mark.cluster

BATCH, CORE = "/apis/batch/v1", "/api/v1"
NETWORKING, RBAC = "/apis/networking.k8s.io/v1", "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    """No pods, no controllers: what is asked is what the API server keeps of what is applied."""
    with kube_node(tmp_path_factory.mktemp("deploy")) as made:
        yield made


def deploy(node: KubeNode, *words: str, **options: Any) -> dict[str, Any]:
    done = node.ztprobe("deploy", *words, "--json", **options)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def applied(node: KubeNode, run: str, level: int, namespace: str | None = None) -> list[str]:
    """An experiment, without what came into the API after this server's version: numbered pods of a Job."""
    options = WorkloadOptions(
        rounds=2,
        clients=3,
        seed=0,
        distribution="iid",
        dataset="digits",
        data_dir=None,
        reconnect=False,
        level=level,
    )
    documents = experiment_documents(run, options, namespace=namespace)
    for document in documents:
        document.get("spec", {}).pop("completionMode", None)
    with entered(node.netns), changing(Api(str(node.kubeconfig("admin")))) as changes:
        return [changes.apply(document) for document in documents]


def names(node: KubeNode, path: str) -> list[str]:
    return [item["metadata"]["name"] for item in node.call("GET", path)["items"]]


def test_an_experiment_is_applied_beside_another_and_removed_alone(node: KubeNode) -> None:
    assert applied(node, "aaaaaa", 1)[0] == "Namespace fl-aaaaaa"
    applied(node, "bbbbbb", 0)
    assert names(node, f"{BATCH}/namespaces/fl-aaaaaa/jobs") == ["fl-client", "fl-server"]
    assert len(names(node, f"{NETWORKING}/namespaces/fl-aaaaaa/networkpolicies")) == 4
    # A baseline beside it has no policy in force.
    assert names(node, f"{NETWORKING}/namespaces/fl-bbbbbb/networkpolicies") == []
    job = node.call("GET", f"{BATCH}/namespaces/fl-aaaaaa/jobs/fl-client")
    assert job["spec"]["parallelism"] == 3
    assert job["metadata"]["managedFields"][0]["manager"] == "ztprobe"
    listed = json.loads(node.ztprobe("undeploy", "--json").stdout)
    assert listed == {"aaaaaa": ["fl-aaaaaa"], "bbbbbb": ["fl-bbbbbb"]}
    removed = json.loads(node.ztprobe("undeploy", "aaaaaa", "--json").stdout)["removed"]
    assert removed == ["Namespace fl-aaaaaa"]
    # No controller empties it here; it has been told to go.
    assert node.call("GET", f"{CORE}/namespaces/fl-aaaaaa")["status"]["phase"] == "Terminating"
    assert node.call("GET", f"{CORE}/namespaces/fl-bbbbbb")["status"]["phase"] == "Active"
    node.ztprobe("undeploy", "bbbbbb")


def test_in_a_namespace_that_is_there_only_the_run_goes(node: KubeNode) -> None:
    node.call("POST", f"{CORE}/namespaces", {"metadata": {"name": "team-a"}})
    node.call("POST", f"{CORE}/namespaces/team-a/configmaps", {"metadata": {"name": "theirs"}})
    made = applied(node, "cccccc", 1, "team-a")
    assert not [name for name in made if name.startswith("Namespace")]
    removed = json.loads(node.ztprobe("undeploy", "cccccc", "-n", "team-a", "--json").stdout)["removed"]
    assert sorted(removed) == sorted(made)
    assert names(node, f"{BATCH}/namespaces/team-a/jobs") == []
    assert names(node, f"{CORE}/namespaces/team-a/configmaps") == ["theirs"]
    assert node.call("GET", f"{CORE}/namespaces/team-a")["status"]["phase"] == "Active"


def test_the_agent_is_applied_renewed_and_removed(node: KubeNode) -> None:
    deploy(node, "agent")
    path = "/apis/apps/v1/namespaces/ztprobe/daemonsets/ztprobe-agent"
    before = node.call("GET", path)
    secret = node.call("GET", f"{CORE}/namespaces/ztprobe/secrets/ztprobe-agent-tls")
    deploy(node, "agent", "--least-privilege")
    after = node.call("GET", path)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    context = after["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert context["privileged"] is False
    assert node.call("GET", f"{CORE}/namespaces/ztprobe/secrets/ztprobe-agent-tls") != secret
    assert "ztprobe-agent" in names(node, f"{RBAC}/clusterroles")
    removed = json.loads(node.ztprobe("undeploy", "agent", "--json").stdout)["removed"]
    assert {"Namespace ztprobe", "ClusterRole ztprobe-agent"} <= set(removed)
    assert "ztprobe-agent" not in names(node, f"{RBAC}/clusterroles")


def test_a_refusal_names_verb_and_resource_or_what_admission_said(node: KubeNode) -> None:
    done = node.ztprobe("deploy", "experiment", "net0-sec0", fails=3, user="nobody")
    assert "does not let us apply Namespace fl-" in done.stderr
    assert "missing: the verb patch on namespaces" in done.stderr
    assert done.stderr.count("\n") == 1
    done = node.ztprobe("undeploy", "ab12cd", fails=3, user="nobody")
    assert "missing: the verb list on namespaces" in done.stderr
    done = node.ztprobe("deploy", "experiment", "net0-sec2", fails=3)
    assert "the cluster's Kubernetes is too old to apply Job fl-" in done.stderr
    assert "restartPolicy: field not declared in schema" in done.stderr  # of sidecars
    assert done.stderr.count("\n") == 1
    node.call("POST", f"{CORE}/namespaces", {"metadata": {"name": "full"}})
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    node.call("POST", f"{CORE}/namespaces/full/resourcequotas", quota)
    status = {"status": {"hard": quota["spec"]["hard"], "used": {"count/jobs.batch": "0"}}}
    node.call("PATCH", f"{CORE}/namespaces/full/resourcequotas/none/status", status)
    done = node.ztprobe("deploy", "experiment", "net0-sec0", "-n", "full", fails=3)
    assert "refuses to apply Job full/fl-server (403): " in done.stderr
    assert "exceeded quota: none" in done.stderr
    assert "missing:" not in done.stderr
    done = node.ztprobe("deploy", "experiment", "net0-sec0", "-n", "nowhere", fails=3)
    assert 'namespaces "nowhere" not found' in done.stderr
    done = node.ztprobe("deploy", "experiment", "net0-sec0", "--context", "prod", fails=3)
    assert "prod" in done.stderr
    assert done.stderr.count("\n") == 1
    done = node.ztprobe("undeploy", "--all", "--json")
    assert json.loads(done.stdout)["removed"]


def test_what_an_account_may_do_and_what_is_admitted_are_the_api_servers_word(node: KubeNode) -> None:
    place = "held"
    node.call("POST", f"{CORE}/namespaces", {"metadata": {"name": place}})
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [SETTINGS], "verbs": ["get"]}
    node.call("POST", f"{RBAC}/namespaces/{place}/roles", {"metadata": {"name": "own"}, "rules": [rule]})
    subject = {"kind": "ServiceAccount", "name": "fl-client", "namespace": place}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "own"}
    binding = {"metadata": {"name": "own"}, "roleRef": role, "subjects": [subject]}
    node.call("POST", f"{RBAC}/namespaces/{place}/rolebindings", binding)

    def proven(user: str) -> dict[str, tuple[bool, str]]:
        with entered(node.netns), changing(Api(str(node.kubeconfig(user)))) as changes:
            found = prove_hardening(changes, place, ["fl-client", "fl-server"], "x/fl:1")
        return {one.name.partition(": ")[2]: (one.passed, one.observed) for one in found}

    found = proven("admin")
    assert found["ServiceAccount fl-client -> list pods"] == (True, "not allowed")
    assert found["ServiceAccount fl-client -> get configmaps/fl-workload"] == (True, "allowed")
    assert found["ServiceAccount fl-server -> get configmaps/fl-workload"] == (False, "not allowed")
    # This API server has no Pod Security, and lets a privileged pod in; it is not made for that.
    passed, observed = found["a privileged pod in held"]
    assert not passed
    assert observed.startswith("admitted: is the namespace labelled")
    assert names(node, f"{CORE}/namespaces/{place}/pods") == []
    # Whoever may not ask proves nothing.
    assert not any(passed for passed, _ in proven("nobody").values())
