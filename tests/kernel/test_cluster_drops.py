"""`ztprobe drops --agents`: the drops of a cluster's nodes by their agents, a real API server between.

The nodes are two in the API's words and share this machine's kernel: each agent is given its own pods alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.kernel.agent_service import Service, certificates
from tests.kernel.cluster import NODE, KubeNode, kube_node
from tests.kernel.cluster_agents import ADDRESSES, OTHER, SILENT, Agents, deploy_agents
from tests.kernel.test_agent_service import wait_for
from tests.programs import program
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.batches import BATCHES_DIR

pytestmark = pytest.mark.cluster

BARE = "node-d"
PORT = 50052
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "server-port", "namespace": "fl"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "fl-server"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": 50051, "protocol": "TCP"}]}],
    },
}
# What a network plugin that enforces it does.
RULES = f"""table inet plugin {{
  counter dropped {{}}
  chain in {{ type filter hook input priority 0; tcp dport {PORT} counter name dropped drop; }}
}}
"""
DROPS = ("drops", "--runtime", "kubernetes", "-n", "fl", "--reason", "NETFILTER_DROP", "--json")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """A server on one node, a client on another; two more pods that nobody watches."""
    directory = tmp_path_factory.mktemp("cluster")
    with kube_node(directory) as node:
        tls = certificates(directory / "tls")
        node.run("fl-server-0", {"app": "fl-server"}, 10, layout="v2-systemd")
        node.run("fl-client-0", {"app": "fl-client"}, 11, layout="v2-systemd", node=OTHER)
        for number, place in ((12, SILENT), (13, BARE)):
            node.create(f"fl-client-{place}", {"app": "fl-client"}, node=place)
            node.report(f"fl-client-{place}", "Running", f"10.98.0.{number}")
        node.call("POST", "/apis/networking.k8s.io/v1/namespaces/fl/networkpolicies", POLICY)
        deploy_agents(node, tls["collector"])
        for pod in node.pods.values():
            with entered(pod.netns):
                subprocess.run([program("nft"), "-f", "-"], input=RULES, text=True, check=True)
        yield Agents(node, tls, directory)


def filtered(node: KubeNode, name: str) -> int:
    """Packets that a pod's packet filter has dropped."""
    with entered(node.pods[name].netns):
        listed = subprocess.run(
            [program("nft"), "-j", "list", "counters"], capture_output=True, text=True, check=True
        ).stdout
    return sum(one["counter"]["packets"] for one in json.loads(listed)["nftables"] if "counter" in one)


def knock(node: KubeNode, source: str, target: str) -> None:
    with entered(node.pods[source].netns), socket.socket() as knocking:
        knocking.settimeout(0.2)
        with pytest.raises(TimeoutError):
            knocking.connect((node.pods[target].address, PORT))


class Watching:
    """`ztprobe drops --follow`, and what it says."""

    def __init__(self, node: KubeNode, directory: Path, *words: str) -> None:
        self.out, self.said = directory / "out", directory / "err"
        with entered(node.netns), self.out.open("wb") as out, self.said.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ztprobe", *DROPS, "--follow", *words],
                stdout=out,
                stderr=err,
                cwd=REPO_DIR,
                env={**os.environ, "KUBECONFIG": str(node.kubeconfig("admin"))},
            )

    def await_words(self, words: str, limit_s: float = 60.0) -> None:
        wait_for(words, lambda: words in self.said.read_text() or self.process.poll() is not None, limit_s)
        assert words in self.said.read_text()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def packets(self) -> dict[str, int]:
        """By node."""
        found: Counter[str] = Counter()
        for line in self.lines():
            found[line["node"]] += line["packets"]
        return dict(found)

    def end(self) -> str:
        """As Ctrl-C does. :returns: all that was said."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0, self.said.read_text()
        return self.said.read_text()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for child in psutil.Process().children(recursive=True):
        if "drops" in child.cmdline():
            child.kill()


SESSION = f"""
import sys, time
from pathlib import Path
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.agent.service.wire import TlsFiles
address, batches, *files = sys.argv[1:]
certificate, key, authority = map(Path, files)
tls = TlsFiles(certificate=certificate, key=key, authority=authority)
with AgentClient(Connection(address, tls), Path(batches) / "{BATCHES_DIR}", run="meanwhile") as agent:
    agent.prepare()
    agent.start()
    print("watches", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def session(agents: Agents, served: Service, directory: Path) -> Iterator[None]:
    """A run that the agent watches meanwhile."""
    tls = agents.tls["collector"]
    arguments = [served.address, str(directory), *map(str, (tls.certificate, tls.key, tls.authority))]
    with entered(agents.node.netns):
        process = subprocess.Popen(
            [sys.executable, "-c", SESSION, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPO_DIR,
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "watches\n"
        yield
    finally:
        process.communicate(timeout=30)


def test_each_row_names_its_node_and_what_nobody_watches_is_said(agents: Agents, directory: Path) -> None:
    node = agents.node
    with agents.serving(NODE) as first, agents.serving(OTHER) as second, session(agents, first, directory):
        watching = Watching(node, directory, "--agents")
        watching.await_words("watching namespace fl on node-a, node-b: ")
        before = {name: filtered(node, name) for name in node.pods}
        for _ in range(7):
            knock(node, "fl-client-0", "fl-server-0")
        for _ in range(3):
            knock(node, "fl-server-0", "fl-client-0")
        wait_for("all drops", lambda: sum(watching.packets().values()) >= 10)
        said = watching.end()
        truth = {name: filtered(node, name) - before[name] for name in node.pods}
        assert watching.packets() == {NODE: truth["fl-server-0"], OTHER: truth["fl-client-0"]}
        assert truth == {"fl-server-0": 7, "fl-client-0": 3}
        by_node = {line["node"]: line for line in watching.lines()}
        one = by_node[NODE]
        assert (one["source"], one["target"], one["target_port"]) == ("fl-client-0", "fl-server-0", PORT)
        assert (one["run"], one["pod"], one["location"]) == ("cluster", "fl-server-0", "nft_do_chain")
        assert one["policies"] == ["NetworkPolicy fl/server-port"]
        assert abs(one["time_unix_ns"] - time.time_ns()) < 60e9
        other = by_node[OTHER]
        assert (other["source"], other["pod"], other["policies"]) == ("fl-server-0", "fl-client-0", [])
        assert "node node-c: the agent at 10.98.0.1:7443 does not answer" in said
        assert "node node-d: has no agent; what is dropped there is not seen" in said
        assert "coverage 50%: 2 of 4 pods were watched the whole time, on 2 of 4 nodes" in said
        for served in (first, second):  # what watched for us has ended, the run's probes have not
            wait_for(
                "no watcher is left",
                lambda pid=served.process.pid: (
                    not [
                        child
                        for child in psutil.Process(pid).children(recursive=True)
                        if "ztprobe.agent.drop_process" in child.cmdline()
                    ]
                ),
            )


def test_an_agent_that_goes_and_comes_back_is_said(agents: Agents, directory: Path) -> None:
    node, tls = agents.node, agents.tls["collector"]
    words: tuple[str, ...] = (
        "--cert",
        str(tls.certificate),
        "--key",
        str(tls.key),
        "--ca",
        str(tls.authority),
    )
    for name in (NODE, OTHER):
        words += ("--agent", f"{ADDRESSES[name]}:7443")
    with contextlib.ExitStack() as stack:
        stack.enter_context(agents.serving(OTHER))
        with agents.serving(NODE) as served:
            watching = Watching(node, directory, *words)
            watching.await_words("watching namespace fl on node-a, node-b: ")
            knock(node, "fl-client-0", "fl-server-0")
            wait_for("a drop", lambda: watching.packets() == {NODE: 1})
            os.kill(served.process.pid, signal.SIGKILL)
            watching.await_words("node node-a: the agent at 10.98.0.2:7443 ")
            assert "what is dropped there is not seen" in watching.said.read_text()
        stack.enter_context(agents.serving(NODE))
        watching.await_words("node node-a: the agent at 10.98.0.2:7443 answers again")

        def knocked() -> bool:
            knock(node, "fl-client-0", "fl-server-0")
            return watching.packets()[NODE] >= 3

        wait_for("drops again", knocked)
        said = watching.end()
        assert "coverage 25%: 1 of 4 pods were watched the whole time, on 1 of 4 nodes" in said


@pytest.mark.parametrize(
    ("words", "user", "said"),
    [
        (("--agents",), "admin", "the agent at 10.98.0.2:7443 does not answer"),
        (("--agents",), "nobody", "missing: the verb list on pods"),
        (("--agents", "--agents-in", "fl"), "admin", "no agent runs in namespace fl (app=ztprobe-agent)"),
        (("--agent", "10.98.0.2:7443", "--agents-in", "fl"), "admin", "or give --cert, --key and --ca"),
    ],
)
def test_who_cannot_be_asked_is_one_line(
    agents: Agents, words: tuple[str, ...], user: str, said: str
) -> None:
    done = agents.node.ztprobe(*DROPS, "--for", "2", *words, user=user, fails=None, NODE_NAME="")
    assert done.returncode not in (0, 70)
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
