"""A lease that follows its selector on a cluster's node: pods that come, are replaced, and go.

What is on an interface is asked of tc, what it has sent of its own counter, both in the pod's namespace.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.kernel.cluster import KubeNode, KubePod, kube_node
from tests.kernel.test_agent_service import wait_for
from ztprobe.kernelnet.netns import entered

pytestmark = pytest.mark.cluster

LAYOUT = "v2-systemd"
CLIENT, SERVER = {"app": "fl-client"}, {"app": "fl-server"}
CLIENTS = ("-l", "app=fl-client")
PODS = "/api/v1/namespaces/fl/pods"
AT_ONCE = {"gracePeriodSeconds": 0}
SENT = 50
SENDER = f"""
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
    for _ in range({SENT}):
        sending.sendto(bytes(100), (sys.argv[1], 9))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    with kube_node(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def node(cluster: KubeNode) -> Iterator[KubeNode]:
    """With a server and a client; afterwards neither they nor a lease are there."""
    cluster.run("fl-server-0", SERVER, 10, layout=LAYOUT)
    cluster.run("fl-client-0", CLIENT, 11, layout=LAYOUT)
    yield cluster
    cluster.ztprobe("profile", "clear")
    assert cluster.qdiscs() == {}
    assert not cluster.state.exists()
    for name in list(cluster.pods):
        remove(cluster, name)


def remove(node: KubeNode, name: str) -> None:
    """As kubelet does it: the sandbox first."""
    node.kill(name)
    node.call("DELETE", f"{PODS}/{name}", AT_ONCE)


def await_qdiscs(node: KubeNode, *pods: str) -> None:
    wait_for(f"the profile is on {pods}", lambda: set(node.qdiscs()) == set(pods), 10)


def status(node: KubeNode) -> dict[str, Any]:
    (one,) = node.profile("status")
    return dict(one)


def since(node: KubeNode, pod: str) -> dict[str, Any]:
    """What `status` says of one pod under the lease, once it does."""

    def told() -> list[dict[str, Any]]:
        return [one for one in status(node)["pods_since"] if one["pod"] == f"fl/{pod}"]

    wait_for(f"status has {pod}", lambda: bool(told()), 10)
    (one,) = told()
    return one


def shaped_and_sent(pod: KubePod) -> tuple[int, int]:
    """Packets that the token bucket has let pass, and all that the interface has sent."""
    with entered(pod.netns):
        tc = ["tc", "-s", "qdisc", "show", "dev", "eth0", "root"]
        text = subprocess.run(tc, capture_output=True, text=True, check=True).stdout
        link = subprocess.run(
            ["ip", "-s", "-j", "link", "show", "dev", "eth0"], capture_output=True, text=True, check=True
        )
    passed = re.search(r"tbf 5a71:.*?Sent \d+ bytes (\d+) pkt", text, re.DOTALL)
    assert passed is not None, text
    return int(passed[1]), int(json.loads(link.stdout)[0]["stats64"]["tx"]["packets"])


def record(node: KubeNode, lease: str) -> dict[str, Any]:
    return dict(json.loads((node.state / "leases" / lease / "lease.json").read_text()))


def test_a_pod_that_comes_has_the_profile_before_its_application_sends(node: KubeNode) -> None:
    lease = node.profile("apply", "net5", *CLIENTS, "--for", "5m")
    assert lease["notes"] == []
    assert node.qdiscs() == {"fl-client-0": "tbf"}
    # What the API says while nothing runs: no address, no phase but Pending.
    uid = node.create("fl-client-1", CLIENT)
    pod = node.bring_up("fl-client-1", uid, 12, layout=LAYOUT)
    await_qdiscs(node, "fl-client-0", "fl-client-1")
    one = since(node, "fl-client-1")
    assert one["came_later"] is True
    assert one["gap_ms"] is not None
    assert one["sent_before"] <= one["sent_after"]
    with entered(pod.netns):
        subprocess.run([sys.executable, "-S", "-c", SENDER, node.pods["fl-server-0"].address], check=True)
    wait_for("the bucket has let all of them pass", lambda: shaped_and_sent(pod)[0] >= SENT, 10)

    def sent_without() -> int:
        shaped, sent = shaped_and_sent(pod)
        return sent - shaped

    # All that it sent without is what the kernel said by itself as the interface came up; what it says
    # between two looks is counted in one of them alone.
    wait_for(
        "no more was sent without than is told",
        lambda: one["sent_before"] <= sent_without() <= one["sent_after"],
        10,
    )
    node.report("fl-client-1", "Running", pod.address)
    found = status(node)
    assert (found["in_force"], found["lapsed"], found["left_out"]) == ("yes", [], {})
    assert found["pods"] == ["fl/fl-client-0", "fl/fl-client-1"]
    assert since(node, "fl-client-0")["came_later"] is False
    wait_for(
        "its address is known",
        lambda: [one["address"] for one in record(node, lease["lease"])["pods"]][1] == pod.address,
        10,
    )
    verdicts = node.profile("verify", "--probes", "300")
    assert all(verdict["passed"] for verdict in verdicts), verdicts
    text = node.ztprobe("profile", "status").stdout
    assert re.search(r"fl/fl-client-1 since \d+s, (before its first packet|\d+ .*packets sent before)", text)
    assert node.profile("clear", lease["lease"])["cleared"] == [lease["lease"]]
    assert node.qdiscs() == {}


def test_a_pod_that_is_replaced_is_under_it_again_and_none_ends_it(node: KubeNode) -> None:
    lease = node.profile("apply", "net5", *CLIENTS, "--for", "5m")["lease"]
    remove(node, "fl-client-0")
    wait_for("it is let go", lambda: status(node)["pods"] == [], 10)
    found = status(node)
    assert (found["in_force"], found["lapsed"]) == ("yes, on no pod at the moment", [])
    assert record(node, lease)["points"] == []
    node.run("fl-client-0", CLIENT, 11, layout=LAYOUT, pinned=False)
    await_qdiscs(node, "fl-client-0")
    found = status(node)
    assert (found["lease"], found["pods"], found["in_force"]) == (lease, ["fl/fl-client-0"], "yes")


def test_both_directions_reach_the_veth_s_end_on_the_node(node: KubeNode) -> None:
    node.profile("apply", "net5", *CLIENTS, "--direction", "both")
    node.run("fl-client-1", CLIENT, 12, layout=LAYOUT)
    await_qdiscs(node, "fl-client-0", "fl-client-0^", "fl-client-1", "fl-client-1^")
    remove(node, "fl-client-0")
    wait_for("it is let go", lambda: status(node)["pods"] == ["fl/fl-client-1"], 10)
    assert status(node)["in_force"] == "yes"


def test_an_ifb_device_on_the_node_goes_with_its_pod(node: KubeNode) -> None:
    node.profile("apply", "net5", *CLIENTS, "--at", "host")
    node.run("fl-client-1", CLIENT, 12, layout=LAYOUT)
    wait_for("both are under it", lambda: len(status(node)["interfaces"]) == 2, 10)

    def devices() -> int:
        with entered(node.netns):
            shown = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        return len(re.findall(r" ztp[0-9a-f]{6}-\d+:", shown))

    assert devices() == 2
    remove(node, "fl-client-0")
    wait_for("its device is gone", lambda: devices() == 1, 10)
    node.profile("clear")
    assert devices() == 0


def test_other_labels_release_a_pod(node: KubeNode) -> None:
    node.profile("apply", "net5", *CLIENTS)
    node.run("fl-client-1", CLIENT, 12, layout=LAYOUT)
    await_qdiscs(node, "fl-client-0", "fl-client-1")
    node.call("PATCH", f"{PODS}/fl-client-1", {"metadata": {"labels": {"app": "idle"}}})
    await_qdiscs(node, "fl-client-0")
    node.call("PATCH", f"{PODS}/fl-client-1", {"metadata": {"labels": CLIENT}})
    await_qdiscs(node, "fl-client-0", "fl-client-1")


def test_peers_that_come_are_met(node: KubeNode) -> None:
    node.profile("apply", "net5", *CLIENTS, "--to", "app=fl-server")
    node.run("fl-client-1", CLIENT, 12, layout=LAYOUT)
    await_qdiscs(node, "fl-client-0", "fl-client-1")
    node.create("fl-server-far", SERVER, node="node-b")
    node.report("fl-server-far", "Running", "10.98.7.7")

    def addresses(name: str) -> list[str]:
        with entered(node.pods[name].netns):
            command = ["tc", "filter", "show", "dev", "eth0"]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return sorted(re.findall(r"match ([0-9a-f]{8})/ffffffff at 16", shown))

    both = ["0a62000a", "0a620707"]
    for name in ("fl-client-0", "fl-client-1"):
        wait_for("both peers are met", lambda name=name: addresses(name) == both, 10)
    node.call("DELETE", f"{PODS}/fl-server-far", AT_ONCE)
    for name in ("fl-client-0", "fl-client-1"):
        wait_for("one is met", lambda name=name: addresses(name) == both[:1], 10)
    assert status(node)["in_force"] == "yes"


def test_somebody_else_s_qdisc_is_said_and_the_pod_taken_once_it_is_gone(node: KubeNode) -> None:
    pod = node.run("fl-client-1", {"app": "idle"}, 12, layout=LAYOUT)
    with entered(pod.netns):
        subprocess.run(shlex.split("tc qdisc add dev eth0 root handle 7: pfifo limit 50"), check=True)
    node.profile("apply", "net5", *CLIENTS)
    node.call("PATCH", f"{PODS}/fl-client-1", {"metadata": {"labels": CLIENT}})
    wait_for("it is left out", lambda: bool(status(node)["left_out"]), 10)
    assert "already has the qdisc pfifo 7:" in status(node)["left_out"]["fl/fl-client-1"]
    assert node.qdiscs() == {"fl-client-0": "tbf"}
    with entered(pod.netns):
        subprocess.run(shlex.split("tc qdisc del dev eth0 root"), check=True)
    await_qdiscs(node, "fl-client-0", "fl-client-1")
    wait_for("it is said no longer", lambda: status(node)["left_out"] == {}, 10)


def test_a_killed_worker_s_warden_takes_it_off_pods_that_came(node: KubeNode) -> None:
    lease = node.profile("apply", "net5", *CLIENTS)["lease"]
    node.run("fl-client-1", CLIENT, 12, layout=LAYOUT)
    await_qdiscs(node, "fl-client-0", "fl-client-1")
    psutil.Process(record(node, lease)["owner"]["pid"]).send_signal(signal.SIGKILL)
    await_qdiscs(node)
    wait_for("its record is gone", lambda: not (node.state / "leases").exists(), 10)


def test_the_next_clean_takes_it_off_pods_that_came(node: KubeNode) -> None:
    lease = node.profile("apply", "net5", *CLIENTS)["lease"]
    node.run("fl-client-1", CLIENT, 12, layout=LAYOUT)
    await_qdiscs(node, "fl-client-0", "fl-client-1")
    worker = psutil.Process(record(node, lease)["owner"]["pid"])
    keepers = (worker.parent(), worker)
    for keeper in keepers:
        keeper.suspend()
    for keeper in keepers:
        keeper.kill()
    assert set(node.qdiscs()) == {"fl-client-0", "fl-client-1"}
    done = node.ztprobe("clean")
    assert f"lease {lease} of net5 (its keeper died)" in done.stdout + done.stderr
    assert node.qdiscs() == {}


def test_an_api_that_is_away_leaves_the_known_pods_under_it(node: KubeNode) -> None:
    node.profile("apply", "net5", *CLIENTS)
    servers = [process for process in psutil.process_iter() if _is_api_of(node, process)]
    assert servers
    try:
        for server in servers:
            server.suspend()
        wait_for("it is said", lambda: bool(status(node)["follow_problem"]), 60)
        assert node.qdiscs() == {"fl-client-0": "tbf"}
        assert status(node)["in_force"] == "yes"
    finally:
        for server in servers:
            server.resume()
    wait_for("it is asked again", lambda: not status(node)["follow_problem"], 60)
    node.run("fl-client-1", CLIENT, 12, layout=LAYOUT)
    await_qdiscs(node, "fl-client-0", "fl-client-1")


def _is_api_of(node: KubeNode, process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return bool(words) and words[0].endswith("kube-apiserver") and str(node.directory) in " ".join(words)


def test_without_following_it_holds_for_the_pods_that_run(node: KubeNode) -> None:
    lease = node.profile("apply", "net5", *CLIENTS, "--no-follow")
    assert record(node, lease["lease"])["follow"] is None
    remove(node, "fl-client-0")
    wait_for("it ends with its pods", lambda: not node.state.exists(), 10)
