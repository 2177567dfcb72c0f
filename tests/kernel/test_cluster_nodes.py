"""A deployment on two nodes seen through their agents: traced into one run, and diagnosed while it runs.

The API server is real, and so are the agents, the packets and the log on its way through the API. The
nodes share this machine's kernel: their clocks do not differ, and what is said of them has to say so.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from analysis.load import load_analysed
from tests.kernel.agent_service import certificates
from tests.kernel.cluster import NODE, KubeNode, kube_node
from tests.kernel.cluster_agents import OTHER, Agents, deploy_agents
from tests.kernel.kubelet import await_line
from tests.kernel.kubelet_logs import LogServer
from tests.kernel.test_agent_service import wait_for
from tests.kernel.test_cluster_attach import first_line
from tests.otlp_collector import Collector, attributes_of
from tests.prometheus import asked, by_label, free_port, prometheus, queries
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.store import load_run

pytestmark = pytest.mark.cluster

BYTES = "300000"
# Nothing that only root may do can be done by the command: whatever touches a node is an agent.
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
TRACE = ("trace", "--attach", "--runtime", "kubernetes", "-n", "fl", "--server", "app=fl-server")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """A server on one node, clients on another, and rounds that go on."""
    directory = tmp_path_factory.mktemp("nodes")
    with kube_node(directory) as node, contextlib.ExitStack() as stack:
        tls = certificates(directory / "tls")
        deploy_agents(node, tls["collector"])
        server = node.run("fl-server-0", {"app": "fl-server"}, 10, layout="v2-systemd")
        for number in range(2):
            name = f"fl-client-{number}"
            node.run(name, {"app": "fl-client"}, 11 + number, layout="v2-systemd", node=OTHER)
        log = node.play("fl-server-0", "server", server.address, "100000", "2", BYTES, "0.1")
        port = json.loads(first_line(log).partition(" F ")[2])["port"]
        for number in range(2):
            node.play(f"fl-client-{number}", "client", f"{server.address}:{port}", BYTES, "0.02")
        stack.enter_context(LogServer(node, node.directory / "log" / "pods"))
        yield Agents(node, tls, directory)


@pytest.mark.parametrize("clients", [("--client", "app=fl-client"), ()], ids=["named", "by connection"])
def test_one_run_directory_of_two_nodes(agents: Agents, tmp_path: Path, clients: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    words = (*TRACE, *clients, "--agents", "--rounds", "5", "--out", str(out), "--json")
    with agents.serving(NODE), agents.serving(OTHER):
        done = agents.node.ztprobe(*words, before=POWERLESS, NODE_NAME="")
    report, run = json.loads(done.stdout), load_run(out)
    assert [(one["name"], sorted(one["pods"])) for one in run.meta["nodes"]] == [
        (NODE, ["fl-server-0"]),
        (OTHER, ["fl-client-0", "fl-client-1"]),
    ]
    attachment = run.meta["attachment"]
    roles = {one["name"]: one["role"] for one in attachment["participants"]}
    assert roles == {"fl-server-0": "server", "fl-client-0": "client", "fl-client-1": "client"}
    assert attachment["rounds_from"]["source"] == "events"
    assert all(one["processes"] for one in attachment["participants"])
    assert set(run.events["connections"]["pod"]) >= set(roles)
    assert not any(run.meta["loss"].values()), run.meta["loss"]
    assert len(report["rounds"]) >= 4
    for one in report["rounds"]:
        assert {client["client"] for client in one["clients"]} == {"fl-client-0", "fl-client-1"}
        parts_s = sum(one["components"].values()) + one["residual_s"]
        assert parts_s == pytest.approx(one["duration_s"], abs=1e-6)
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
        assert one["components"]["compute"] >= 0.02
    (clock,) = report["clocks"]
    assert clock["node"] == OTHER
    assert clock["packets"] > 0
    # One kernel has one clock: what is found must be nothing, within what is said.
    assert abs(clock["offset_ns"]) <= clock["uncertainty_ns"] < 5_000_000
    assert report["contention"]["known"]
    assert {one["node"] for one in report["contention"]["run"]["nodes"]} == {NODE, OTHER}
    machine = run.events["machine"]
    assert (machine.groupby("node")[["deployment_ns", "ztprobe_ns"]].sum() > 0).all(axis=None)
    (found,) = load_analysed(out).run.meta["node_clocks"]
    assert found["offset_ns"] == clock["offset_ns"]


def test_rounds_are_in_the_metrics_while_they_end_and_spans_afterwards(
    agents: Agents, tmp_path: Path
) -> None:
    node, out, number = agents.node, tmp_path / "run", 40
    with contextlib.ExitStack() as stack:
        with entered(node.netns):
            metrics = free_port()
            scraped = stack.enter_context(prometheus(tmp_path, metrics))
            collector = stack.enter_context(Collector())
        stack.enter_context(agents.serving(NODE, "--metrics", f"127.0.0.1:{metrics}"))
        stack.enter_context(agents.serving(OTHER))

        def told(query: str) -> dict[tuple[str, ...], float]:
            with entered(node.netns):
                return by_label(asked(scraped, query))

        words = (*TRACE, "--client", "app=fl-client", "--agents", "--rounds", str(number), "--out", str(out))
        with ThreadPoolExecutor() as pool:
            tracing = pool.submit(node.ztprobe, *words, "--json", "--otlp", collector.url, NODE_NAME="")
            wait_for("rounds told", lambda: told("ztprobe_agent_round_seconds_count > 5"), 90)
            assert not tracing.done()
            assert told("ztprobe_run_rounds") == {}  # what they consist of is known afterwards
            done = tracing.result()
        report = json.loads(done.stdout)
        panels = {name: query for name, query in queries().items() if "_round_" in query or "_run_" in query}
        assert len(panels) == 6
        wait_for("the run told", lambda: told("ztprobe_run_rounds"))
        found = {name: told(query) for name, query in panels.items()}
        assert all(math.isfinite(value) for series in found.values() for value in series.values()), found
        (ended,) = told("ztprobe_agent_round_seconds_count").values()
        assert number <= ended <= number + 3  # the last look may meet several
        lasted_s = [one["duration_s"] for one in report["rounds"]]
        parts = found["A round of the latest run, by component A"]
        assert sum(parts.values()) == pytest.approx(statistics.fmean(lasted_s), rel=1e-6)
        assert parts["compute",] >= 0.02
        communication = report["communication"]["rounds"]
        for client in ("fl-client-0", "fl-client-1"):
            mine = [one["communication_s"] for one in communication if one["client"] == client]
            series = found["Communication in a round of the latest run, by client A"]
            assert series[client, "mean"] == pytest.approx(statistics.fmean(mine))
            assert series[client, "longest"] == pytest.approx(max(mine))
    whole = [span for _, span in collector.spans if not span.parent_span_id]
    assert [attributes_of(span)["fl.round"] for span in whole] == [one["round"] for one in report["rounds"]]
    assert {who for who, _ in collector.spans} >= {"server", "fl-client-0", "fl-client-1"}


class Diagnosing:
    """`ztprobe diagnose --live --agents`, and what it says."""

    def __init__(self, node: KubeNode, directory: Path, *words: str) -> None:
        self.out, self.said = directory / "out", directory / "err"
        command = [*POWERLESS, sys.executable, "-m", "ztprobe", "diagnose", "--live", "--json", *words]
        with entered(node.netns), self.out.open("wb") as out, self.said.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, cwd=REPO_DIR, env=node.environment()
            )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def until(self, what: str, condition: Any) -> None:
        def met() -> bool:
            assert self.process.poll() is None, self.said.read_text()
            return bool(self.lines()) and condition(self.lines()[-1])

        wait_for(what, met, 60)


def client_process(node: KubeNode) -> psutil.Process:
    """The second client's."""
    (found,) = (
        child
        for child in psutil.Process().children(recursive=True)
        if "tests.e2e.small_federation" in child.cmdline()
        and "client" in child.cmdline()
        and node.pods["fl-client-1"].inode == Path(f"/proc/{child.pid}/ns/net").stat().st_ino
    )
    return found


def test_a_stall_of_what_was_attached_to_is_recorded_with_its_cause(agents: Agents, tmp_path: Path) -> None:
    out, client = tmp_path / "run", client_process(agents.node)
    words = [*TRACE, "--client", "app=fl-client", "--agents", "--stall-after", "4", "--out", str(out)]
    with agents.serving(NODE), agents.serving(OTHER):
        with entered(agents.node.netns):
            tracing = subprocess.Popen(
                [*POWERLESS, sys.executable, "-m", "ztprobe", *words],
                cwd=REPO_DIR,
                env=agents.node.environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            await_line(tracing, "the server's round", 90)
            client.send_signal(signal.SIGSTOP)
            said = await_line(tracing, "stands still", 60).splitlines()[-1]
            client.send_signal(signal.SIGCONT)
            await_line(tracing, "the server's round", 60)
            tracing.send_signal(signal.SIGINT)
            _, rest = tracing.communicate(timeout=90)
        finally:
            client.send_signal(signal.SIGCONT)
            if tracing.poll() is None:
                tracing.kill()
    assert tracing.returncode == 0, rest
    (stall,) = load_run(out).meta["stalls"]
    assert stall["words"] in said
    assert (stall["waiting"], stall["waits_for"]) == ("fl-server-0", ["fl-client-1"])
    assert stall["states"]["fl-client-1"] == "stopped by a signal"
    (between,) = stall["connections"]
    assert {between[end].partition(":")[0] for end in ("source", "target")} == {"fl-server-0", "fl-client-1"}


def test_what_goes_wrong_on_another_node_is_said_while_it_does(agents: Agents, tmp_path: Path) -> None:
    node = agents.node
    client = client_process(node)
    with agents.serving(NODE), agents.serving(OTHER):
        watching = Diagnosing(node, tmp_path, "--agents", "-n", "fl")
        try:
            watching.until("a first diagnosis", lambda line: line["troubles"] == [])
            client.send_signal(signal.SIGSTOP)
            watching.until("the cause", lambda line: line["causes"])
            found = watching.lines()[-1]
            assert found["troubles"][0]["kind"] == "unfinished"
            assert found["causes"][0]["id"] == "application.process_stopped"
            assert found["causes"][0]["pods"] == ["fl-client-1"]
            client.send_signal(signal.SIGCONT)
            watching.until("rounds again", lambda line: line != found)
        finally:
            client.send_signal(signal.SIGCONT)
            watching.process.send_signal(signal.SIGINT)
            watching.process.wait(30)
    assert watching.process.returncode == 0, watching.said.read_text()


def test_pods_that_come_and_go_are_told_with_their_times(agents: Agents, tmp_path: Path) -> None:
    out, node = tmp_path / "run", agents.node
    with agents.serving(NODE), agents.serving(OTHER):
        node.run("fl-client-8", {"app": "fl-client"}, 18, layout="v2-systemd", node=OTHER)
        command = [sys.executable, "-m", "ztprobe", *TRACE, "--client", "app=fl-client", "--agents"]
        with entered(node.netns):
            tracing = subprocess.Popen(
                [*command, "--for", "25s", "--out", str(out)],
                cwd=REPO_DIR,
                env=node.environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
        await_line(tracing, "the server's round", 60)
        node.call("DELETE", "/api/v1/namespaces/fl/pods/fl-client-8?gracePeriodSeconds=0")
        node.run("fl-client-9", {"app": "fl-client"}, 19, layout="v2-systemd", node=OTHER)
        assert tracing.wait(120) == 0
    node.call("DELETE", "/api/v1/namespaces/fl/pods/fl-client-9?gracePeriodSeconds=0")
    told = load_run(out).meta["attachment"]
    times = {one["name"]: (one["first_seen_ns"], one["ended_ns"]) for one in told["participants"]}
    since_ns, until_ns = told["attached_ns"], told["detached_ns"]
    for name in ("fl-server-0", "fl-client-0", "fl-client-1"):
        assert times[name] == (since_ns, 0)
    assert times["fl-client-8"][0] == since_ns < times["fl-client-8"][1] < until_ns
    assert since_ns < times["fl-client-9"][0] < until_ns
    assert times["fl-client-9"][1] == 0


def test_an_agent_that_dies_ends_it_and_what_was_seen_is_kept(agents: Agents, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with agents.serving(NODE), agents.serving(OTHER) as other:
        command = [sys.executable, "-m", "ztprobe", *TRACE, "--agents", "--out", str(out)]
        with entered(agents.node.netns):
            tracing = subprocess.Popen(
                command, cwd=REPO_DIR, env=agents.node.environment(), stderr=subprocess.PIPE, text=True
            )
        assert tracing.stderr is not None
        for line in tracing.stderr:
            if "the server's round" in line:
                break
        (worker,) = (
            child
            for child in psutil.Process(other.process.pid).children(recursive=True)
            if "ztprobe.agent.remote" in child.cmdline()
        )
        worker.kill()
        last = tracing.stderr.read().splitlines()[-1]
        assert tracing.wait(120) not in (0, 70)
        assert "node node-b: the agent has ended" in last
    run = json.loads((out / "run.json").read_text())
    assert "node-b" in run["failed"]["reason"]
    assert run["coverage"] == 0


@pytest.mark.parametrize(
    ("words", "user", "said"),
    [
        (("--agents", "--server", "app=x"), "admin", "--server app=x: matches no pod in namespace fl"),
        (("--agents",), "nobody", "missing: the verb list on pods"),
        (("--agents", "--agents-in", "fl"), "admin", "no agent runs in namespace fl"),
        (("--agents",), "admin", "the agent at 10.98.0.2:7443 does not answer"),
    ],
)
def test_what_cannot_be_seen_is_one_line(
    agents: Agents, tmp_path: Path, words: tuple[str, ...], user: str, said: str
) -> None:
    out = tmp_path / "run"
    done = agents.node.ztprobe(*TRACE, *words, "--out", str(out), "-q", user=user, fails=None, NODE_NAME="")
    assert done.returncode not in (0, 70), done.stderr
    assert said in done.stderr.splitlines()[-1], done.stderr
    assert not out.exists()


def test_a_node_without_an_agent_is_said_and_its_clients_are_seen_from_the_server(
    agents: Agents, tmp_path: Path
) -> None:
    out, tls = tmp_path / "run", agents.tls["collector"]
    files = ("--cert", str(tls.certificate), "--key", str(tls.key), "--ca", str(tls.authority))
    began = time.monotonic()
    with agents.serving(NODE) as served:
        done = agents.node.ztprobe(
            *TRACE, "--agent", served.address, *files, "--for", "4s", "--out", str(out), "--json"
        )
    assert time.monotonic() - began < 60
    assert f"node {OTHER}: has no agent; what happens there is not seen" in done.stderr
    far = [one for one in load_run(out).meta["attachment"]["participants"] if one["pod"] == ""]
    assert {(one["name"], one["address"]) for one in far} == {
        ("fl-client-0", "10.98.0.11"),
        ("fl-client-1", "10.98.0.12"),
    }
    assert json.loads(done.stdout)["rounds"]
