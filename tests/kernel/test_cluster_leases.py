"""`ztprobe profile --agents`: leases on pods of two nodes by their agents, a real API server between.

The nodes are two in the API's words and share this machine's kernel: each agent has a state directory of its
own, and is given its own pods alone. Commands have no capability at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.kernel.agent_service import Service, certificates
from tests.kernel.cluster import NODE, KubeNode, KubePod, kube_node
from tests.kernel.cluster_agents import OTHER, SILENT, Agents, deploy_agents
from tests.kernel.test_agent_service import wait_for
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR

pytestmark = pytest.mark.cluster

LAYOUT = "v2-systemd"
BARE = "node-d"
CLIENT, SERVER = {"app": "fl-client"}, {"app": "fl-server"}
CLIENTS = ("-n", "fl", "-l", "app=fl-client")
CLEAR = ("profile", "clear", "--agents", "--json")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """A server and a client on one node, a client on the other."""
    directory = tmp_path_factory.mktemp("cluster")
    with kube_node(directory) as node:
        tls = certificates(directory / "tls")
        node.run("fl-server-0", SERVER, 10, layout=LAYOUT)
        node.run("fl-client-0", {**CLIENT, "tier": "a"}, 11, layout=LAYOUT)
        node.run("fl-client-1", {**CLIENT, "tier": "b"}, 12, layout=LAYOUT, node=OTHER)
        deploy_agents(node, tls["collector"])
        node.call("DELETE", f"/api/v1/namespaces/ztprobe/pods/agent-{SILENT}", {"gracePeriodSeconds": 0})
        yield Agents(node, tls, directory)


@pytest.fixture
def served(agents: Agents) -> Iterator[dict[str, Service]]:
    """Both agents; afterwards no lease is left."""
    node = agents.node
    with agents.serving(NODE, own_state=True) as first, agents.serving(OTHER, own_state=True) as second:
        yield {NODE: first, OTHER: second}
        run(node, *CLEAR)
        assert node.qdiscs() == {}
        for name in (NODE, OTHER):
            assert not agents.state(name).exists()


def nobody() -> tuple[str, ...]:
    """Before a command: it has no capability, and is not root."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    return setpriv, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"


def run(node: KubeNode, *words: str, fails: int = 0, user: str = "admin") -> Any:
    """A command without any capability. :returns: its JSON, or its one line on standard error."""
    done = node.ztprobe(*words, fails=fails, user=user, before=nobody(), NODE_NAME="")
    if "--json" in words and done.stdout:
        return json.loads(done.stdout)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def apply(node: KubeNode, *words: str, fails: int = 0) -> Any:
    return run(node, "profile", "apply", *words, "--agents", "--json", fails=fails)


def goodput_mbit(sender: KubePod, receiver: KubePod) -> float:
    """By a plain TCP transfer between two pods, for a second and a half after the bucket is empty."""
    with entered(receiver.netns):
        listener = socket.create_server((receiver.address, 0))
    # What waits to be read has come before, however late this is read.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
    with entered(sender.netns):
        sending = socket.create_connection(listener.getsockname())
    taking, _ = listener.accept()
    ending = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):  # whoever took it has gone
            while not ending.is_set():
                sending.sendall(bytes(1 << 14))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        begun_s, taken = time.monotonic(), 0
        while time.monotonic() < begun_s + 0.5:
            taking.recv(1 << 16)
        begun_s = time.monotonic()
        while (now_s := time.monotonic()) < begun_s + 1.5:
            taken += len(taking.recv(1 << 16))
    finally:
        ending.set()
        for end in (sending, taking):
            end.shutdown(socket.SHUT_RDWR)
        thread.join()
        for end in (sending, taking):
            end.close()
        listener.close()
    return taken * 8 / (now_s - begun_s) / 1e6


def test_a_rate_is_on_pods_of_both_nodes_measured_and_taken_away(
    agents: Agents, served: dict[str, Service]
) -> None:
    node = agents.node
    planned = apply(node, "net5", *CLIENTS, "--for", "5m", "--dry-run")
    assert planned["dry_run"]
    assert node.qdiscs() == {}
    said = apply(node, "net5", *CLIENTS, "--to", "app=fl-server", "--for", "5m")
    assert said["nodes"] == {NODE: ["fl/fl-client-0"], OTHER: ["fl/fl-client-1"]}
    assert said["pods"] == ["fl/fl-client-0", "fl/fl-client-1"]
    assert {one["node"]: one["pod"] for one in said["interfaces"]} == {
        NODE: "fl/fl-client-0",
        OTHER: "fl/fl-client-1",
    }
    assert (said["state"], said["remaining_s"], said["dry_run"]) == ("in force", 300, False)
    assert any("pods that come later or are restarted are not under it" in note for note in said["notes"])
    # What tc has in the pods' own namespaces, and what plain packets get.
    assert node.qdiscs() == {"fl-client-0": "htb", "fl-client-1": "htb"}
    for name in ("fl-client-0", "fl-client-1"):
        with entered(node.pods[name].netns):
            shown = subprocess.run(["tc", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True)
        assert "qdisc tbf" in shown.stdout
        assert "rate 10Mbit" in shown.stdout
        assert 8 < goodput_mbit(node.pods[name], node.pods["fl-server-0"]) < 10.5
    assert goodput_mbit(node.pods["fl-client-0"], node.pods["fl-client-1"]) > 20  # not what --to says

    status = run(node, "profile", "status", "--agents", "--json")["nodes"]
    for name in (NODE, OTHER):
        (lease,) = status[name]["leases"]
        assert (lease["lease"], lease["in_force"]) == (said["lease"], "yes")
        assert lease["packets"] > 100
        assert 200 < lease["remaining_s"] < 300
    lines = run_text(node, "profile", "status", "--agents").splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [[NODE, said["lease"]], [OTHER, said["lease"]]]
    for line, name, client in zip(lines[3:], (NODE, OTHER), ("fl-client-0", "fl-client-1"), strict=True):
        assert line.startswith(f"node {name}: lease {said['lease']}: fl/{client} since ")

    verdicts = run(node, "profile", "verify", "--probes", "300", "--agents", "--json")
    assert verdicts["problems"] == {}
    by_node = {one["node"]: one for one in verdicts["leases"]}
    for name, client in ((NODE, "fl-client-0"), (OTHER, "fl-client-1")):  # here, and between nodes
        one = by_node[name]
        assert one["passed"], one["problems"]
        assert one["measured"]["rate_mbit"] == pytest.approx(10, rel=0.02)
        assert [(d["sender"], d["receiver"]) for d in one["directions"]] == [(client, "fl-server-0")]

    wrong = run(node, "profile", "clear", "abcdef", "--agents", fails=2)
    assert f"no lease abcdef: there are {said['lease']}" in wrong
    cleared = run(node, "profile", "clear", said["lease"], "--agents", "--json")
    assert cleared["cleared"] == [said["lease"]]
    assert cleared["nodes"] == {NODE: [said["lease"]], OTHER: [said["lease"]]}
    assert node.qdiscs() == {}
    assert "nothing to verify" in run(node, "profile", "verify", "--agents", fails=5)


def run_text(node: KubeNode, *words: str, fails: int = 0) -> str:
    return node.ztprobe(*words, fails=fails, before=nobody(), NODE_NAME="").stdout


def test_what_one_node_refuses_is_put_on_none(agents: Agents, served: dict[str, Service]) -> None:
    node = agents.node
    first = apply(node, "net5", "-n", "fl", "-l", "tier=b")
    assert node.qdiscs() == {"fl-client-1": "tbf"}
    line = run(node, "profile", "apply", "net5", *CLIENTS, "--agents", fails=5)
    assert f"node {OTHER}: fl/fl-client-1 is under net5 already (lease {first['lease']}" in line
    assert line.rstrip().endswith("nothing was put on any node")
    assert node.qdiscs() == {"fl-client-1": "tbf"}
    if not netem_supported():
        line = run(node, "profile", "apply", "net1", "-n", "fl", "-l", "tier=a", "--agents", fails=3)
        assert f"node {NODE}: net1 needs netem on a cluster's node (CONFIG_NET_SCH_NETEM)" in line


def test_both_directions_are_measured_between_nodes(agents: Agents, served: dict[str, Service]) -> None:
    node = agents.node
    lease = apply(node, "net5", "-n", "fl", "-l", "tier=b", "--to", "app=fl-server", "--direction", "both")
    assert set(node.qdiscs()) == {"fl-client-1", "fl-client-1^"}
    (one,) = run(node, "profile", "verify", lease["lease"], "--probes", "300", "--agents", "--json")["leases"]
    assert one["passed"], one["problems"]
    assert [(d["sender"], d["receiver"]) for d in one["directions"]] == [
        ("fl-client-1", "fl-server-0"),
        ("fl-server-0", "fl-client-1"),
    ]
    # Somebody takes it off by hand: found out by packets, and said by the kernel's account.
    with entered(node.pods["fl-client-1"].netns):
        subprocess.run(["tc", "qdisc", "del", "dev", "eth0", "root"], check=True)
    said = run(node, "profile", "verify", "--probes", "300", "--agents", "--json", fails=5)
    (one,) = said["leases"]
    assert not one["passed"]
    assert any("the profile is not on the path" in cause for cause in one["causes"])


def test_what_cannot_be_is_one_line(agents: Agents, served: dict[str, Service]) -> None:
    node = agents.node
    pods = "/api/v1/namespaces/fl/pods"
    node.create("bare", {**CLIENT, "case": "bare"}, node=BARE)
    node.report("bare", "Running", "10.98.7.7")
    node.create("unseen", {"case": "unseen"})
    node.report("unseen", "Running", "10.98.7.8")
    node.create("hosted", {"case": "hosted"}, hostNetwork=True)
    node.report("hosted", "Running", "10.98.0.1")
    try:
        for words, status, message in (
            (CLIENTS, 3, f"fl/bare on {BARE}: no agent was asked there (agents: {NODE}, {OTHER}); nothing"),
            (("-n", "fl", "-l", "case=unseen"), 3, f"fl/unseen: the agent of node {NODE} sees none of its"),
            (("-n", "fl", "-l", "case=hosted"), 5, "fl/hosted uses its node's own network (hostNetwork)"),
            (("-n", "fl", "-l", "app=x"), 2, "--selector 'app=x' matches no pod in namespace fl; running"),
            (("-n", "fl", "-l", "tier=a", "--to", "app=x"), 2, "--to 'app=x' matches no pod in namespace"),
            (("-l", "tier=a", "--node", NODE), 2, "agents know theirs: leave it out"),
            (("-l", "tier=a", "--runtime", "local"), 2, "leave --runtime local out"),
            (("-l", "tier=a", "--run", "x"), 2, "leave it out with --agents"),
            (("-l", "tier=a", "--agents-in", "fl"), 3, "no agent runs in namespace fl"),
        ):
            assert message in run(node, "profile", "apply", "net5", *words, "--agents", fails=status)
            assert node.qdiscs() == {}
        line = run(node, "profile", "apply", "net5", *CLIENTS, "--agents", fails=3, user="nobody")
        assert 'User "nobody" cannot list resource "pods"' in line
        line = run(node, "profile", "status", "--context", "test", fails=2)
        assert "--context: is about a cluster's agents: give --agents" in line
    finally:
        for name in ("bare", "unseen", "hosted"):
            node.call("DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 0})


def test_an_agent_that_is_gone_is_said_and_the_next_one_has_its_leases(agents: Agents) -> None:
    node = agents.node
    with agents.serving(NODE, own_state=True):
        with agents.serving(OTHER, own_state=True) as second:
            lease = apply(node, "net5", *CLIENTS, "--for", "5m")["lease"]
            assert node.qdiscs() == {"fl-client-0": "tbf", "fl-client-1": "tbf"}
            os.kill(second.process.pid, signal.SIGKILL)
            second.process.wait()
            told = run(node, "profile", "status", "--agents", "--json", fails=3)["nodes"]
            assert [one["lease"] for one in told[NODE]["leases"]] == [lease]
            assert "does not answer" in told[OTHER]["problem"]
            line = run(node, "profile", "apply", "net5", *CLIENTS, "--agents", fails=3)
            assert f"node {OTHER}: the agent at 10.98.0.3:7443 does not answer" in line
            assert "nothing was put on any node" in line
        # Its keeper is a process of its own: with it the lease stays, and the next agent has it.
        with agents.serving(OTHER, own_state=True):
            told = run(node, "profile", "status", "--agents", "--json")["nodes"]
            assert [one["lease"] for one in told[OTHER]["leases"]] == [lease]
            # A container's end takes the keeper along: the next agent ends what nobody keeps.
            record = json.loads((agents.state(OTHER) / "leases" / lease / "lease.json").read_text())
            worker = psutil.Process(record["owner"]["pid"])
            for process in (worker.parent(), worker):
                process.suspend()
            for process in (worker.parent(), worker):
                process.kill()
            assert node.qdiscs() == {"fl-client-0": "tbf", "fl-client-1": "tbf"}
        with agents.serving(OTHER, own_state=True):
            assert node.qdiscs() == {"fl-client-0": "tbf"}
            assert run(node, *CLEAR)["nodes"] == {NODE: [lease], OTHER: []}
        assert node.qdiscs() == {}


def test_interrupted_it_leaves_nothing(agents: Agents, served: dict[str, Service]) -> None:
    node = agents.node
    command = [*nobody(), sys.executable, "-m", "ztprobe", "profile", "apply", "net5", *CLIENTS, "--agents"]
    environment = {key: value for key, value in node.environment().items() if key != "NODE_NAME"}
    with entered(node.netns):
        process = subprocess.Popen(
            command, env=environment, cwd=REPO_DIR, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    try:
        # One node is held while it begins, and the other has begun.
        until_s = time.monotonic() + 60
        while not (keepers := _keepers(agents.state(OTHER))):
            assert time.monotonic() < until_s and process.poll() is None
        for keeper in keepers:
            keeper.suspend()
        wait_for("it is in force on a node", lambda: "fl-client-0" in node.qdiscs(), 30)
        assert node.qdiscs() == {"fl-client-0": "tbf"}
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        for keeper in keepers:
            keeper.resume()
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 130, (out, err)
    assert out == ""
    assert node.qdiscs() == {}
    for name in (NODE, OTHER):
        assert not list(agents.state(name).glob("leases/*"))


def _keepers(state: Path) -> list[psutil.Process]:
    """Processes that keep a lease that is written down there."""
    found = []
    for path in state.glob("leases/*"):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                keeps = process.cmdline()[-2:] == ["ztprobe.agent.lease_keeper", path.name]
                if keeps and process.environ().get("ZTPROBE_STATE_DIR") == str(state):
                    found.append(process)
    return found


def test_leases_and_whoever_watches_do_not_hinder_each_other(
    agents: Agents, served: dict[str, Service], tmp_path: Path
) -> None:
    from tests.kernel.test_cluster_drops import session

    node = agents.node
    with session(agents, served[NODE], tmp_path):
        lease = apply(node, "net5", "-n", "fl", "-l", "tier=a")["lease"]
        assert node.qdiscs() == {"fl-client-0": "tbf"}
        assert run(node, "profile", "clear", lease, "--agents", "--json")["cleared"] == [lease]
