"""`ztprobe profile` on a cluster's node: from the API's answer to the qdisc on the pod's interface."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kernel.cluster import KubeNode, kube_node
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import MANIFESTS_DIR
from ztprobe.pods.cgroup import find_namespaces
from ztprobe.runtime.local import cgroups

pytestmark = pytest.mark.cluster

CLIENT, SERVER = {"app": "fl-client"}, {"app": "fl-server"}
CLIENTS = ("-l", "app=fl-client")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    """A server and two clients: one with its namespace bound as CNI does it, one without."""
    with kube_node(tmp_path_factory.mktemp("cluster")) as made:
        v1 = "v1-cgroupfs" if cgroups.detect().memory_v1 is not None else "v2-systemd"
        made.run("fl-server-0", SERVER, 10, layout="v2-systemd")
        made.run("fl-client-0", {**CLIENT, "tier": "a"}, 11, layout="v2-systemd")
        made.run("fl-client-1", {**CLIENT, "tier": "b"}, 12, layout=v1, pinned=False)
        yield made


@pytest.fixture(autouse=True)
def _nothing_left(node: KubeNode) -> Iterator[None]:
    yield
    node.ztprobe("profile", "clear")
    assert node.qdiscs() == {}
    assert not node.state.exists()


def test_a_rate_is_applied_verified_and_taken_away(node: KubeNode) -> None:
    lease = node.profile("apply", "net5", *CLIENTS, "--for", "5m")
    assert (lease["runtime"], lease["backend"]) == ("kubernetes", "tbf")
    assert lease["pods"] == ["fl/fl-client-0", "fl/fl-client-1"]
    assert node.qdiscs() == {"fl-client-0": "tbf", "fl-client-1": "tbf"}
    (verdict,) = node.profile("verify", "--probes", "300")
    assert verdict["passed"], verdict["problems"]
    assert verdict["measured"]["rate_mbit"] == pytest.approx(10, rel=0.02)
    assert {d["receiver"] for d in verdict["directions"]} == {"fl-server-0"}
    (status,) = node.profile("status")
    assert status["in_force"] == "yes"
    assert status["packets"] > 600
    node.profile("clear", lease["lease"])
    assert node.qdiscs() == {}


def test_what_enters_is_shaped_at_the_veths_end_on_the_node(node: KubeNode) -> None:
    node.profile("apply", "net5", "-l", "tier in (a,b)", "--direction", "both")
    assert set(node.qdiscs()) == {"fl-client-0", "fl-client-0^", "fl-client-1", "fl-client-1^"}
    (verdict,) = node.profile("verify", "--probes", "300")
    assert verdict["passed"], verdict["problems"]


def test_the_api_evaluates_the_selector(node: KubeNode) -> None:
    selector = "app,tier,tier notin (a),app!=x,!phase"
    assert node.profile("apply", "net5", "-l", selector, "--dry-run")["pods"] == ["fl/fl-client-1"]
    done = node.ztprobe("profile", "apply", "net5", "-l", "app=nobody", fails=2)
    assert "'app=nobody' matches no pod in namespace fl; running: fl: app=fl-client,tier=a" in done.stderr
    done = node.ztprobe("profile", "apply", "net5", *CLIENTS, "-n", "empty", fails=2)
    assert "matches no pod in namespace empty; nothing runs there" in done.stderr


def test_to_meets_pods_anywhere_and_their_service(node: KubeNode) -> None:
    node.create("fl-server-far", SERVER, node="node-b")
    node.report("fl-server-far", "Running", "10.98.7.7")
    spec = {"selector": SERVER, "ports": [{"port": 50051}]}
    service = node.call(
        "POST", "/api/v1/namespaces/fl/services", {"metadata": {"name": "fl-server"}, "spec": spec}
    )
    try:
        lease = node.profile("apply", "net5", "-l", "tier=a", "--to", "app=fl-server")
        assert lease["peers"] == ["fl/fl-server-0", "fl/fl-server-far", "fl/service/fl-server"]
        with entered(node.pods["fl-client-0"].netns):
            command = ["tc", "filter", "show", "dev", "eth0"]
            filters = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for address in ("10.98.0.10", "10.98.7.7", service["spec"]["clusterIP"]):
            number = "".join(f"{int(part):02x}" for part in address.split("."))
            assert f"match {number}/ffffffff at 16" in filters
        (verdict,) = node.profile("verify", "--probes", "300")
        assert [d["receiver"] for d in verdict["directions"]] == ["fl-server-0"]
        assert verdict["passed"], verdict["problems"]
    finally:
        node.call("DELETE", "/api/v1/namespaces/fl/services/fl-server")
        node.call("DELETE", "/api/v1/namespaces/fl/pods/fl-server-far", {"gracePeriodSeconds": 0})


def test_a_restarted_pod_lapses_and_the_others_stay(node: KubeNode) -> None:
    v1 = "v1-cgroupfs" if cgroups.detect().memory_v1 is not None else "v2-systemd"
    node.run("fl-client-2", {**CLIENT, "tier": "c"}, 13, layout=v1)
    lease = node.profile("apply", "net5", "-l", "tier in (b,c)", "--no-follow")["lease"]
    node.kill("fl-client-2")
    node.call("DELETE", "/api/v1/namespaces/fl/pods/fl-client-2", {"gracePeriodSeconds": 0})
    try:
        again = node.run("fl-client-2", {**CLIENT, "tier": "c"}, 13, layout="v2-systemd")
        (status,) = node.profile("status")
        assert status["lapsed"] == ["fl/fl-client-2"]
        assert status["in_force"] == "yes, but lapsed for fl/fl-client-2: restarted or gone"
        assert node.qdiscs() == {"fl-client-1": "tbf"}
        (verdict,) = node.profile("verify", "--probes", "300")
        assert [d["sender"] for d in verdict["directions"]] == ["fl-client-1"]
        node.profile("apply", "net5", "-l", "tier=c")  # the old lease does not stand in its way
        assert node.qdiscs() == {"fl-client-1": "tbf", "fl-client-2": "tbf"}
        assert again.inode != 0
        node.profile("clear", lease)
        assert node.qdiscs() == {"fl-client-2": "tbf"}
    finally:
        node.kill("fl-client-2")
        node.call("DELETE", "/api/v1/namespaces/fl/pods/fl-client-2", {"gracePeriodSeconds": 0})
    deadline = time.monotonic() + 5
    while node.state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_delay_needs_netem_there(node: KubeNode) -> None:
    words = ("apply", "net1", "-l", "tier=a")
    if netem_supported():
        assert node.profile(*words)["backend"] == "netem"
        (verdict,) = node.profile("verify", "--probes", "600")
        assert verdict["passed"], verdict["problems"]
        node.profile("clear")
    done = node.ztprobe("profile", *words, "--backend", "nfqueue", fails=3)
    assert "net1 needs netem on a cluster's node (CONFIG_NET_SCH_NETEM)" in done.stderr


def test_pods_that_cannot_be_had_are_explained(node: KubeNode) -> None:
    pods = "/api/v1/namespaces/fl/pods"
    node.create("far", {"case": "far"}, node="node-b")
    node.report("far", "Running", "10.98.7.8")
    node.create("hosted", {"case": "hosted"}, hostNetwork=True)
    node.report("hosted", "Running", "10.98.0.1")
    node.create("waiting", {"case": "waiting"})
    node.create("unseen", {"case": "unseen"})
    node.report("unseen", "Running", "10.98.7.9")
    node.create("done", {"case": "done"})
    node.report("done", "Succeeded", None)
    try:
        for case, status, message in (
            ("far", 2, "fl/far is on node node-b, and this is node node-a (--node or NODE_NAME)"),
            ("hosted", 5, "fl/hosted uses its node's own network (hostNetwork)"),
            ("waiting", 5, "fl/waiting is Pending: wait until it runs"),
            ("unseen", 3, "fl/unseen: none of its processes is on this node"),
            ("done", 2, "'case=done' matches no pod in namespace fl; running: "),
        ):
            done = node.ztprobe("profile", "apply", "net5", "-l", f"case={case}", fails=status)
            assert message in done.stderr
            assert done.stderr.count("\n") == 1
        # Without hostPID, only the container's own processes are to be seen.
        alone = ("unshare", "--pid", "--fork", "--mount-proc")
        done = node.ztprobe("profile", "apply", "net5", *CLIENTS, fails=3, before=alone)
        assert "no pod's processes can be seen from here: run ztprobe on the node itself" in done.stderr
    finally:
        for name in ("far", "hosted", "waiting", "unseen", "done"):
            node.call("DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 0})


def test_access_that_is_missing_is_named(node: KubeNode) -> None:
    words = ("profile", "apply", "net5", *CLIENTS)
    done = node.ztprobe(*words, "--runtime", "kubernetes", fails=3, KUBECONFIG="/nowhere")
    assert "no access to a Kubernetes cluster: /nowhere: " in done.stderr
    done = node.ztprobe(*words, fails=3, KUBECONFIG=str(node.kubeconfig("admin", token="old")))
    assert "the Kubernetes API does not know us (401, Unauthorized)" in done.stderr
    done = node.ztprobe(*words, fails=3, KUBECONFIG=str(node.kubeconfig("admin", port=6444)))
    assert "the Kubernetes API at https://127.0.0.1:6444 does not answer: Connection refused" in done.stderr
    done = node.ztprobe(*words, fails=3, user="nobody")
    assert 'User "nobody" cannot list resource "pods"' in done.stderr
    assert "missing: the verb list on pods (manifests/components/node-access" in done.stderr


def test_the_role_of_the_manifests_is_enough(node: KubeNode) -> None:
    role = yaml.safe_load((MANIFESTS_DIR / "components/node-access/rbac.yaml").read_text())
    api = "/apis/rbac.authorization.k8s.io/v1"
    node.call("POST", f"{api}/clusterroles", role)
    binding = {
        "metadata": {"name": "ztprobe"},
        "roleRef": {"apiGroup": role["apiVersion"].partition("/")[0], "kind": role["kind"]}
        | {"name": role["metadata"]["name"]},
        "subjects": [{"kind": "User", "name": "agent"}],
    }
    node.call("POST", f"{api}/namespaces/fl/rolebindings", binding)
    deadline = time.monotonic() + 10  # the authorizer hears of it through a watch
    while node.ztprobe(
        "profile", "apply", "net5", *CLIENTS, "--dry-run", user="agent", fails=None
    ).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    lease = node.profile("apply", "net5", *CLIENTS, "--to", "app=fl-server", user="agent")
    assert lease["notes"] == []
    (verdict,) = node.profile("verify", "--probes", "300", user="agent")
    assert verdict["passed"], verdict["problems"]


def test_from_a_container_on_the_node(node: KubeNode) -> None:
    # A cgroup namespace of its own hides the upper part of the others' paths, and /run/netns is the host's.
    inner = "sh", "-c", 'umount -l /run/netns; exec "$@"', "sh"
    container = ("unshare", "--cgroup", "--mount", *inner)
    group = cgroups.detect().unified
    assert group is not None
    own = group / node.tag / "kubepods.slice" / f"kubepods-pod{secrets.token_hex(16)}.slice"
    own.mkdir(parents=True)
    join = "sh", "-c", f'echo $$ > {own}/cgroup.procs; exec "$@"', "sh"
    try:
        words = ("apply", "net5", "-l", "tier=a", "--at", "pod")
        lease = node.profile(*words, before=(*join, *container))
        assert lease["pods"] == ["fl/fl-client-0"]
        assert node.qdiscs() == {"fl-client-0": "tbf"}
        node.profile("clear")
    finally:
        deadline = time.monotonic() + 5
        while (own / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        own.rmdir()


def test_namespaces_lead_from_processes_to_pods_in_every_layout(node: KubeNode) -> None:
    found = find_namespaces()
    for pod in node.pods.values():
        assert found.pods[pod.uid].stat().st_ino == pod.inode
    assert node.netns.stat().st_ino in {Path(path).stat().st_ino for path in found.others}
