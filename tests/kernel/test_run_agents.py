"""A run's pods on two nodes, acted on by two agents: found, watched, shaped, measured and tried.

Pods are as kubelet and a network plugin make them, on one kernel; what the API says of them is written here.
The clients' agent has the least-privilege manifest's capabilities and no others.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.kernel.agent_service import certificates, least_privilege, service
from tests.kernel.cluster import KubeNode
from tests.kernel.test_agent_service import wait_for
from tests.kernel.test_machine_load import BURN, BURN_S, go, orphan
from ztprobe.agent.service.node_session import process_number
from ztprobe.errors import EnforcementError, ZtprobeError
from ztprobe.experiment.nodes.agent import NodesAgent
from ztprobe.experiment.nodes.load import NodesLoad
from ztprobe.experiment.nodes.looks import look_at_nodes
from ztprobe.experiment.nodes.tables import tables_of
from ztprobe.kernelnet.netns import entered
from ztprobe.kubernetes.agents import AgentAddress
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile, load_profile
from ztprobe.runtime.attempts import REFUSED, SILENT, connect
from ztprobe.runtime.cluster.agent_nodes import AgentNodes, RunAgents
from ztprobe.runtime.cluster.gate import GATE
from ztprobe.runtime.cluster.run_nodes import AllNetworks

LAYOUT = "v2-systemd"
WHERE = {"fl-server": "node-a", "fl-client-0": "node-b", "fl-client-1": "node-b"}


@dataclass
class Apart:
    """A server on one node, two clients on another."""

    node: KubeNode
    agents: RunAgents
    objects: dict[str, dict[str, Any]]
    services: dict[str, int]  # node -> process


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    directory = tmp_path_factory.mktemp("apart")
    tls, node = certificates(directory / "tls"), KubeNode(directory)
    with entered(node.netns):  # where packets between pods are forwarded
        held = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"])
    try:
        objects = {}
        for number, (name, where) in enumerate(WHERE.items(), start=20):
            uid = str(uuid.uuid4())
            made = node.bring_up(name, uid, number, layout=LAYOUT)
            objects[name] = {
                "metadata": {"name": name, "namespace": "fl-ab12cd", "uid": uid, "labels": {}},
                "spec": {"nodeName": where},
                "status": {"podIP": made.address, "podIPs": [{"ip": made.address}]},
            }
        with (
            service(tls["agent"], directory / "a", NODE_NAME="node-a") as first,
            service(tls["agent"], directory / "b", before=least_privilege(), NODE_NAME="node-b") as second,
        ):
            addresses = [AgentAddress(node="", address=one.address) for one in (first, second)]
            yield Apart(
                node=node,
                agents=RunAgents(addresses=tuple(addresses), tls=tls["collector"]),
                objects=objects,
                services={"node-a": first.process.pid, "node-b": second.process.pid},
            )
    finally:
        held.kill()
        held.wait()
        for name in list(node.pods):
            node.kill(name)
        node.down()


def shaped(apart: Apart) -> set[str]:
    """The pods whose own interface has what a session puts there."""
    found = set()
    for name, pod in apart.node.pods.items():
        with entered(pod.netns):
            command = ["tc", "qdisc", "show", "dev", "eth0", "root"]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "tbf 5a70:" in text:
            found.add(name)
    return found


@pytest.fixture
def nodes(apart: Apart, tmp_path: Path) -> Iterator[AgentNodes]:
    made = AgentNodes(apart.agents, tmp_path / "batches", run="ab12cd")
    yield made
    made.close()


@pytest.fixture
def pods(apart: Apart, nodes: AgentNodes) -> dict[str, Pod]:
    nodes.look_at(apart.objects, len(WHERE))
    return nodes.enter(apart.objects, "fl-server")


def test_pods_are_found_by_their_nodes_agents(apart: Apart, nodes: AgentNodes, pods: dict[str, Pod]) -> None:
    assert {name: pod.node for name, pod in pods.items()} == WHERE
    assert {name: pod.netns_inode for name, pod in pods.items()} == {
        name: one.inode for name, one in apart.node.pods.items()
    }
    assert list(nodes.sessions) == ["node-a", "node-b"]
    running = nodes.processes(apart.objects)
    assert {one.pod for one in running} == set(WHERE)
    paused = apart.node.pods["fl-client-0"].pause.pid
    (found,) = (one for one in running if one.pod == "fl-client-0")
    assert (found.pid, found.number == found.pid) == (paused, False)
    access = nodes.access(pods["fl-server"])
    assert access.sysctls(pods["fl-server"])["net.ipv4.tcp_congestion_control"]
    access.one_by_one(pods["fl-server"])
    with pytest.raises(ZtprobeError, match="node node-a: fl-client-0: the agent has found no such pod"):
        access.one_by_one(pods["fl-client-0"])


def test_whose_cpu_time_it_is_and_how_pods_stand_by_two_agents_under_one_kernel(
    apart: Apart, nodes: AgentNodes, pods: dict[str, Pod]
) -> None:
    agent = NodesAgent(nodes)
    agent.prepare()
    for pod in pods.values():
        agent.add_pod(pod)
    sessions = list(nodes.sessions.values())
    groups = apart.node.pods["fl-client-0"].cgroups
    program = f"{BURN}time.sleep(60)"  # no child of this process, which is the command to the agents
    with orphan(program) as (_, theirs), orphan(program) as (pid, own):
        (groups[0] / "cgroup.procs").write_text(str(pid))
        for process in (theirs, own):
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        number = process_number(pid, 1)
        agent.watch({number: ("fl-client-0", "client")})
        with NodesLoad(sessions) as load:
            wait_for("a first row", lambda: load.foreign_share(1.0) is not None)
            for process in (theirs, own):
                go(process)
            for process in (theirs, own):
                assert process.stdout is not None and process.stdout.readline() == b"done\n"
            load.stop()
        found = look_at_nodes(sessions)
    table = load.table()
    assert load.problem is None
    spent = table.groupby("node")[["deployment_ns", "foreign_ns", "ztprobe_ns"]].sum() / 1e9
    for node in ("node-a", "node-b"):  # whichever agent it is that watches
        assert spent.loc[node, "deployment_ns"] == pytest.approx(BURN_S, abs=0.15)
        assert spent.loc[node, "foreign_ns"] > 0.85 * BURN_S
        assert spent.loc[node, "ztprobe_ns"] > 0
    assert set(found.ends) == set(found.limits) == set(pods)
    assert all(limits["tcp_retries2"] > 0 for limits in found.limits.values())
    assert list(found.processes["fl-client-0"]) == [number]
    assert found.processes["fl-client-0"][number].cpu_s == pytest.approx(BURN_S, abs=0.15)


def test_a_gate_is_opened_by_its_nodes_agent_and_by_no_other(
    apart: Apart, nodes: AgentNodes, pods: dict[str, Pod]
) -> None:
    gate = f"/run/{GATE}"
    make = f'mount -t tmpfs none /run && mkdir -m 777 {gate} && exec "$@"'
    wait = f"until [ -e {gate}/open ]; do sleep 0.05; done; echo open"
    somebody = ("setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", wait)
    held = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", make, "sh", *somebody], stdout=subprocess.PIPE, text=True
    )
    try:
        for group in apart.node.pods["fl-client-0"].cgroups:
            (group / "cgroup.procs").write_text(str(held.pid))
        wait_for("its user", lambda: psutil.Process(held.pid).uids().real == 65534)
        assert nodes.access(pods["fl-server"]).open_gate([held.pid], GATE) is None  # of another's pod
        held_s = nodes.access(pods["fl-client-0"]).open_gate([held.pid], GATE)
        assert held_s is not None
        assert 0 <= held_s < 60
        assert held.communicate(timeout=20)[0] == "open\n"
    finally:
        held.kill()
        held.wait()


def test_ways_between_nodes_are_tried(nodes: AgentNodes, pods: dict[str, Pod]) -> None:
    networks = AllNetworks(nodes)
    server, client = pods["fl-server"], pods["fl-client-0"]
    assert connect(client, server.address, 50052, 1.0, networks) == REFUSED
    with networks.listening(server, 50052) as take:
        assert connect(client, server.address, 50052, 1.0, networks) == "connected"
        take()
    with entered(server.netns):
        rules = "table ip t {\nchain i {\ntype filter hook input priority 0\ntcp dport 50052 drop\n}\n}\n"
        subprocess.run(["nft", rules], check=True)
    try:
        with networks.listening(server, 50052):
            assert connect(client, server.address, 50052, 0.5, networks) == SILENT
    finally:
        with entered(server.netns):
            subprocess.run(["nft", "delete table ip t"], check=True)


def test_a_rate_on_two_nodes_is_watched_and_measured_between_them(
    apart: Apart, nodes: AgentNodes, pods: dict[str, Pod]
) -> None:
    agent = NodesAgent(nodes)
    agent.prepare()
    for pod in pods.values():
        agent.add_pod(pod)
    assert agent.start()
    assert agent.apply(load_profile("net5"), seed=0) == "tbf"
    assert shaped(apart) == set(WHERE)
    found = agent.measure("fl-server", ["fl-client-0", "fl-client-1"])
    assert found.problems == [], found
    assert found.measured["rate_mbit"] == pytest.approx(10, rel=0.02)
    assert {one["sender"] for one in found.details["rates"]} == set(WHERE)
    assert len(found.details["directions"]) == 4
    assert abs(found.details["wall_clocks_ahead_ms"]["node-b"]) < 5
    assert agent.status().problem is None
    networks = AllNetworks(nodes)
    with networks.listening(pods["fl-server"], 50051):
        assert connect(pods["fl-client-1"], pods["fl-server"].address, 50051, 2.0, networks) == "connected"
    account = agent.stop()
    assert account.problem is None
    assert {name: one["kind"] for name, one in account.observed.items() if name in WHERE} == dict.fromkeys(
        WHERE, "tbf"
    )
    assert shaped(apart) == set()
    connections = tables_of(list(nodes.sessions.values()))["connections"]
    ours = connections[(connections["local_port"] == 50051) | (connections["remote_port"] == 50051)]
    assert set(ours["pod"]) == {"fl-server", "fl-client-1"}


def test_a_profile_that_is_not_there_is_found_out(nodes: AgentNodes, pods: dict[str, Pod]) -> None:
    agent = NodesAgent(nodes)
    agent.prepare()
    for pod in pods.values():
        agent.add_pod(pod)
    agent.start()
    agent.apply(Profile(name="none"), seed=0)
    agent._profile = load_profile("net5")
    problems = agent.measure("fl-server", ["fl-client-0", "fl-client-1"]).problems
    assert any("Mbit/s" in one for one in problems), problems


def test_one_who_is_at_work_says_so_and_one_that_dies_is_named(
    apart: Apart, nodes: AgentNodes, pods: dict[str, Pod], tmp_path: Path
) -> None:

    other = AgentNodes(apart.agents, tmp_path / "other", run="another")
    with pytest.raises(EnforcementError, match="is at work for run ab12cd"):
        other.enter(apart.objects, "fl-server")
    other.close()
    agent = NodesAgent(nodes)
    agent.prepare()
    for pod in pods.values():
        agent.add_pod(pod)
    agent.start()
    children = psutil.Process(apart.services["node-b"]).children(recursive=True)
    (worker,) = (one for one in children if "ztprobe.agent.remote" in one.cmdline())
    worker.kill()
    with pytest.raises(EnforcementError, match="node node-b: the agent has ended before its time"):
        agent.status()
    account = agent.stop()
    assert account.coverage == 0.0
    assert account.problem is not None
    assert account.problem.startswith("node node-b: ")
