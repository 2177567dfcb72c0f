"""The agent's DaemonSet on a real node: its image, its rights, its way to pods; what is left when it goes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.real_node import RealNode, namespace_gone, wait_for
from tools.kube_cluster.places import NODE
from ztprobe.agent.service.privileges import lacking
from ztprobe.kernelnet.netns import entered
from ztprobe.kubernetes.agents import AGENTS_NAMESPACE, COLLECTOR_SECRET
from ztprobe.pods.cgroup import find_namespaces, find_processes
from ztprobe.pods.model import NOWHERE, Pod
from ztprobe.pods.placing import placed

QUIET = "quiet"
AGENT = "app=ztprobe-agent"


@pytest.fixture(
    scope="module", params=["privileged", pytest.param("least-privilege", marks=pytest.mark.optional)]
)
def agent(node: RealNode, request: pytest.FixtureRequest) -> Iterator[RealNode]:
    # All that the manifest adds, for the kernels that need all of it.
    if request.param == "least-privilege" and (absent := lacking(kernel="5.10")):
        pytest.skip(f"no container runtime can give what this machine has not: {absent[0]}")
    node.ztprobe("deploy", "agent", *(["--least-privilege"] if request.param == "least-privilege" else []))
    try:
        wait_for("the agent is ready", lambda: node.ready(AGENTS_NAMESPACE, AGENT), 90)
        yield node
    finally:
        node.ztprobe("undeploy", "agent")
        wait_for("the agent is gone", namespace_gone(node, AGENTS_NAMESPACE), 120)
        assert node.shaped() == []


@pytest.fixture(scope="module")
def quiet(node: RealNode) -> Iterator[list[Pod]]:
    """Two pods that do nothing."""
    path = f"/api/v1/namespaces/{QUIET}"
    node.call("POST", "/api/v1/namespaces", {"metadata": {"name": QUIET}})
    wait_for("its account is there", lambda: node.call("GET", f"{path}/serviceaccounts/default"))
    try:
        container = {"name": "c", "image": "ztprobe/fl:0.1.0", "command": ["sleep", "infinity"]}
        spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
        for name in ("pod-a", "pod-b"):
            body = {"metadata": {"name": name, "labels": {"app": QUIET}}, "spec": spec}
            wait_for(f"{name} is made", lambda body=body: node.call("POST", f"{path}/pods", body))
        wait_for("both run", lambda: len(node.ready(QUIET, f"app={QUIET}")) == 2)
        yield [here(pod) for pod in sorted(node.ready(QUIET, "app"), key=lambda one: one["metadata"]["name"])]
    finally:
        node.call("DELETE", path)


def here(pod: dict) -> Pod:
    """As this machine's /proc has it: the agent sees the same."""
    metadata = pod["metadata"]
    named = Pod(
        name=metadata["name"],
        namespace=metadata["namespace"],
        address=pod["status"]["podIP"],
        netns=NOWHERE,
        netns_inode=0,
        interface="",
        host_interface="",
        node_netns=NOWHERE,
        uid=metadata["uid"],
        node=NODE,
    )
    return placed(named, (metadata["uid"],), find_namespaces())


@pytest.fixture
def tls(agent: RealNode, tmp_path: Path) -> Path:
    """The collector's certificate, as the Secret has it."""
    secret = agent.call("GET", f"/api/v1/namespaces/{AGENTS_NAMESPACE}/secrets/{COLLECTOR_SECRET}")
    for name, content in secret["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(content))
    return tmp_path


def address(node: RealNode) -> str:
    (pod,) = node.ready(AGENTS_NAMESPACE, AGENT)
    return f"{pod['status']['podIP']}:7443"


def status(node: RealNode, tls: Path) -> dict:
    files = ("--cert", str(tls / "tls.crt"), "--key", str(tls / "tls.key"), "--ca", str(tls / "ca.crt"))
    return json.loads(node.ztprobe("agent", "status", address(node), *files, "--json").stdout)


def lease(node: RealNode, tls: Path, pod: Pod) -> str:
    """A rate on a pod by the agent; the lease's name."""
    script = [sys.executable, "-m", "tests.cluster.lease_through", address(node), str(tls)]
    done = subprocess.run(
        node.node.command([*script, json.dumps(pod.as_dict())]),
        env=node.node.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_says_where_it_is_and_what_it_holds(agent: RealNode, tls: Path) -> None:
    said = status(agent, tls)
    assert said["node"] == NODE
    assert said["sessions"] == said["leases"] == []
    (pod,) = agent.ready(AGENTS_NAMESPACE, AGENT)
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_pods_drops_are_told_through_it(agent: RealNode, quiet: list[Pod]) -> None:
    first, second = quiet
    words = ("drops", "--runtime", "kubernetes", "--agents", "-n", QUIET, "--for", "12")
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(agent.ztprobe, *words, "--reason", "NO_SOCKET", "--json")
        while not watching.done():
            with entered(first.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"nobody", (second.address, 9))
            time.sleep(0.2)
    drops = [json.loads(line) for line in watching.result().stdout.splitlines()]
    assert drops, watching.result().stderr
    assert {(one["source"], one["target"], one["target_port"]) for one in drops} == {("pod-a", "pod-b", 9)}


def test_an_agent_whose_pod_is_deleted_leaves_no_qdisc(agent: RealNode, quiet: list[Pod], tls: Path) -> None:
    name = lease(agent, tls, quiet[0])
    assert len(agent.shaped()) == 1
    (one,) = status(agent, tls)["leases"]
    assert (one["lease"], one["pods"]) == (name, [f"{QUIET}/pod-a"])
    (pod,) = agent.ready(AGENTS_NAMESPACE, AGENT)
    agent.call("DELETE", f"/api/v1/namespaces/{AGENTS_NAMESPACE}/pods/{pod['metadata']['name']}")
    wait_for("the profile is taken off", lambda: agent.shaped() == [], 60)
    gone = pod["metadata"]["uid"]

    def others() -> list[dict]:
        return [one for one in agent.ready(AGENTS_NAMESPACE, AGENT) if one["metadata"]["uid"] != gone]

    wait_for("another agent has come", others, 120)
    assert status(agent, tls)["leases"] == []


def test_what_a_killed_agent_leaves_the_next_one_takes_away(
    agent: RealNode, quiet: list[Pod], tls: Path
) -> None:
    lease(agent, tls, quiet[0])
    assert len(agent.shaped()) == 1
    (pod,) = agent.ready(AGENTS_NAMESPACE, AGENT)
    (container,) = pod["status"]["containerStatuses"]
    wanted = container["containerID"].rpartition("/")[2]
    uid = pod["metadata"]["uid"]
    for pid, _, identity in list(find_processes({uid: uid})):  # whoever keeps the lease, too
        if identity == wanted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def starts() -> list[int]:
        found = agent.ready(AGENTS_NAMESPACE, AGENT)
        return [one["restartCount"] for pod in found for one in pod["status"]["containerStatuses"]]

    wait_for("the agent is there again", lambda: starts() == [container["restartCount"] + 1], 120)
    wait_for("the profile is taken off", lambda: agent.shaped() == [], 30)
    assert status(agent, tls)["leases"] == []
