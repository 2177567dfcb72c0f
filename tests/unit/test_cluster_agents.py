"""Agents of a cluster, as a collector finds them, and the drops of their nodes on the way to it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.kernel.agent_service import COLLECTOR, certificates
from tests.unit.test_drops_live import kind, record
from tests.unit.test_pod_source import Answers, api, pod
from ztprobe.agent.drop_feed import RECORD, Batch, Hello
from ztprobe.agent.service import drop_streams
from ztprobe.agent.service.client import Connection
from ztprobe.agent.service.drop_client import NodeDrops
from ztprobe.agent.service.server import AgentServer
from ztprobe.agent.service.session import Sessions
from ztprobe.agent.service.wire import TlsContents
from ztprobe.cli.entry import ztprobe
from ztprobe.errors import PreflightError, UsageError, ZtprobeError
from ztprobe.kubernetes.agents import agents_of, collector_certificate
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.pod_source import pods_everywhere
from ztprobe.probes.drop_watch import Collected, DropAccount
from ztprobe.runtime.cluster.agent import agent_documents

__all__ = ("api",)  # a fixture

NOTHING = DropAccount(seen=0, passed=0, collected=0, uncounted=0, missed_runs=0)


def test_agents_are_those_that_deploy_puts_there(api: Answers) -> None:
    (daemon,) = (one for one in agent_documents() if one["kind"] == "DaemonSet")
    template = daemon["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = (one["containerPort"] for one in container["ports"] if one["name"] == "grpc")
    api.pods = [pod("b", node="node-b"), pod("a", node="node-a"), pod("c", node="node-c", phase="Pending")]
    found = agents_of(Api())
    assert [one.node for one in found] == ["node-a", "node-b"]
    assert {one.address.rpartition(":")[2] for one in found} == {str(port)}
    path, query = api.asked[-1]
    assert path == f"/api/v1/namespaces/{daemon['metadata']['namespace']}/pods"
    ((name, _, value),) = (text.partition("=") for text in query["labelSelector"])
    assert template["metadata"]["labels"][name] == value
    assert found[1].why_gone() is None
    api.pods = [pod("a", node="node-a"), pod("d", node="node-b")]  # as its DaemonSet replaces it
    assert found[0].why_gone() is None
    assert found[1].why_gone() == "its pod ztprobe/b has been removed"
    api.pods = []
    with pytest.raises(PreflightError, match="ztprobe deploy agent puts one on every node"):
        agents_of(Api())


def test_the_collectors_certificate_is_the_one_that_deploy_makes(api: Answers) -> None:
    secrets = {one["metadata"]["name"]: one for one in agent_documents() if one["kind"] == "Secret"}
    api.body = json.dumps(secrets["ztprobe-collector-tls"])
    certificate, key, authority = collector_certificate(Api())
    assert certificate.startswith(b"-----BEGIN CERTIFICATE")
    assert b"PRIVATE KEY" in key
    assert authority.startswith(b"-----BEGIN CERTIFICATE")
    assert api.asked[-1] == ("/api/v1/namespaces/ztprobe/secrets/ztprobe-collector-tls", {})
    assert "PRIVATE" not in repr(TlsContents(certificate=certificate, key=key, authority=authority))
    api.body = json.dumps({"data": {"tls.crt": "eA=="}})
    with pytest.raises(
        PreflightError, match=r"has no tls\.key, ca\.crt: ztprobe deploy agent makes it again"
    ):
        collector_certificate(Api())
    damaged: Any
    for damaged in ({"data": {"tls.crt": "no base64"}}, {"data": "x"}, []):
        api.body = json.dumps(damaged)
        with pytest.raises(PreflightError, match="is no Secret") as raised:
            collector_certificate(Api())
        assert "base64" not in str(raised.value)  # nothing of what it held


def test_pods_of_all_nodes_have_names_and_addresses_alone(api: Answers) -> None:
    api.pods = [
        pod("a", node="node-a"),
        pod("b", node="node-b"),
        pod("c", phase="Pending"),
    ]
    found = pods_everywhere(Api(), "fl")
    assert [(one.name, one.node, one.is_here) for one in found] == [
        ("a", "node-a", False),
        ("b", "node-b", False),
    ]
    assert all(one.uid for one in found)


def batch(**values: Any) -> Batch:
    rows = np.zeros(2, RECORD)
    rows["ts_ns"] = [5, 6]
    given: dict[str, Any] = {
        "now_ns": 7,
        "rows": rows,
        "counted": [Collected(kind=kind(netns=99), packets=3, payload_bytes=30, last_ns=6)],
        "untold": 1,
        "symbols": {2**64 - 1: "nft_do_chain"},
        "places": {4026531840: "node", 41: "fl-server"},
        "unseen": {"fl/a": "why"},
        "account": NOTHING,
    }
    return Batch(**given | values)


def test_what_was_dropped_arrives_as_it_was_sent() -> None:
    sent = batch(last=True)
    got = Batch.from_dict(json.loads(json.dumps(sent.as_dict()))["batch"])
    assert got.rows.tobytes() == sent.rows.tobytes()
    assert vars(got) | {"rows": None} == vars(sent) | {"rows": None}
    hello = Hello(node="a", reasons={6: "NETFILTER_DROP"}, unix_offset_ns=9)
    said = json.loads(json.dumps(hello.as_dict()))["hello"]
    assert Hello.from_dict(said) == hello
    with pytest.raises(ValueError, match="bytes"):
        Batch.from_dict(sent.as_dict()["batch"] | {"counted": [["eA==", 1, 1, 1]]})
    with pytest.raises(ZtprobeError, match="of another version"):
        Hello.from_dict(said | {"sizes": [1, 2]})


# What stands in for the process with the probe: it says what it is told to, and what pods it was given.
PROCESS = """
import json, socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
heard = connection.makefile("r")
for line in {lines!r}:
    connection.sendall(line.encode() + b"\\n")
if {waits}:
    for line in heard:
        said = json.loads(line)
        if said.get("stop"):
            connection.sendall({last!r}.encode() + b"\\n")
            break
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says lines instead of the process that watches."""

    def install(*lines: dict[str, Any], waits: bool = True, **rest: Any) -> None:
        last = json.dumps(batch(now_ns=8, last=True, **rest).as_dict())
        text = PROCESS.format(lines=[json.dumps(line) for line in lines], waits=waits, last=last)

        def popen(command: list[str], **options: Any) -> Any:
            assert command[1:3] == ["-m", "ztprobe.agent.drop_process"]
            ours = text.replace("NODE", command[4])
            return subprocess.Popen([command[0], "-c", ours, command[3]], **options)

        theirs = {**vars(subprocess), "Popen": popen}
        monkeypatch.setattr(drop_streams, "subprocess", SimpleNamespace(**theirs))

    return install


def await_(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def served(tmp_path: Path) -> Any:
    sessions = Sessions(tmp_path / "agent", queue_bytes=1 << 20, orphan_s=60)
    with closing(AgentServer(f"unix:{tmp_path}/socket", sessions, tls=None, node="node-a")) as server:
        yield server
    sessions.close()


def watching(tmp_path: Path) -> NodeDrops:
    return NodeDrops(Connection(f"unix:{tmp_path}/socket", None), threading.Event())


def test_a_watcher_gets_what_the_process_says_until_it_stops(
    served: AgentServer, process: Any, tmp_path: Path
) -> None:
    hello = Hello(node="node-a", reasons={6: "NETFILTER_DROP"}, unix_offset_ns=9)
    process(hello.as_dict(), batch().as_dict())
    with watching(tmp_path) as drops:
        await_(lambda: drops.places)
        assert drops.hello == hello
        assert drops.symbol(2**64 - 1) == "nft_do_chain"
        assert drops.now_ns() >= 7
        (first,) = drops.read()
        assert asdict(first.counted[0])["packets"] == 3
        assert not drops.is_over
        drops.stop()
        await_(lambda: drops.is_over)
        (last,) = drops.read()
        assert last.last
        assert drops.problem is None
        assert drops.account() == NOTHING
        assert not drops.has_missed


def test_a_process_that_fails_or_ends_is_said(
    served: AgentServer, process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process({"error": "PreflightError", "message": "this kernel has no tracepoint kfree_skb"}, waits=False)
    with watching(tmp_path) as drops:
        await_(lambda: drops.problem)
        assert (
            drops.problem == f"the agent at unix:{tmp_path}/socket: this kernel has no tracepoint kfree_skb"
        )
        assert drops.has_missed
    for lines, said in (
        ([Hello(node="a", reasons={}, unix_offset_ns=0).as_dict()], "has ended"),
        ([{"hello": {}}], "says what nobody understands"),
        ([{"batch": {"now_ns": "x"}}], "says what nobody understands"),
    ):
        process(*lines, waits=False)
        with watching(tmp_path) as drops:
            await_(lambda drops=drops: drops.problem)
            assert said in (drops.problem or "")


def test_only_so_many_watch_at_once(served: AgentServer, process: Any, tmp_path: Path) -> None:
    process(Hello(node="node-a", reasons={}, unix_offset_ns=0).as_dict())
    with watching(tmp_path) as first, watching(tmp_path) as second:
        await_(lambda: first.hello and second.hello)
        with watching(tmp_path) as third:
            await_(lambda: third.problem)
            assert "2 others watch drops on node node-a: wait until one has ended" in (third.problem or "")
        first.close()
        with watching(tmp_path) as fourth:
            await_(lambda: fourth.hello)


def test_drops_are_for_those_with_a_certificate_of_the_right_name(tmp_path: Path, process: Any) -> None:
    process(Hello(node="node-a", reasons={}, unix_offset_ns=0).as_dict())
    tls = certificates(tmp_path / "tls")
    sessions = Sessions(tmp_path / "agent", queue_bytes=1 << 20, orphan_s=60)
    server = AgentServer("127.0.0.1:0", sessions, tls=tls["agent"], callers=[COLLECTOR])
    with closing(server):
        address = f"127.0.0.1:{server.port}"
        for who, lets_in in (("collector", True), ("stranger", False)):
            with NodeDrops(Connection(address, tls[who]), threading.Event()) as drops:
                await_(lambda drops=drops: drops.hello or drops.problem)
                assert (drops.hello is not None) == lets_in
                assert lets_in or "does not let us in" in (drops.problem or "")
        with NodeDrops(Connection(address, None), threading.Event()) as drops:
            await_(lambda: drops.problem)
            assert drops.hello is None
    sessions.close()


def test_rows_of_several_nodes_name_them_and_coverage_says_what_nobody_watched(
    api: Answers, process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = record(kind(netns=41, source="10.0.0.8", target="10.0.0.7", location=2**64 - 1), 5)
    seen = batch(now_ns=6, rows=row, counted=[], places={41: "here"}, unseen={})
    process(
        Hello(node="NODE", reasons={7: "NETFILTER_DROP"}, unix_offset_ns=10**18).as_dict(),
        seen.as_dict(),
        unseen={},
    )
    api.pods = [
        pod(name, node=node, status_podIPs=[{"ip": f"10.0.0.{number}"}])
        for number, (name, node) in enumerate((("a", "node-a"), ("b", "node-b"), ("c", "node-c")), 7)
    ]
    with contextlib.ExitStack() as stack:
        words = ["drops", "--runtime", "kubernetes", "-n", "fl", "--for", "1", "--json"]
        for node in ("node-a", "node-b"):
            sessions = Sessions(tmp_path / node, queue_bytes=1 << 20, orphan_s=60)
            stack.callback(sessions.close)
            address = f"unix:{tmp_path}/{node}.socket"
            stack.enter_context(closing(AgentServer(address, sessions, tls=None, node=node)))
            words += ["--agent", address]
        tls = certificates(tmp_path / "tls")["collector"]
        words += ["--cert", str(tls.certificate), "--key", str(tls.key), "--ca", str(tls.authority)]
        monkeypatch.setattr("os.geteuid", lambda: 1000)  # whoever asks need not be root
        outcome = CliRunner().invoke(ztprobe, words)
    assert outcome.exit_code == 0, outcome.output
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert sorted(line["node"] for line in lines) == ["node-a", "node-b"]
    for line in lines:
        assert (line["source"], line["target"], line["pod"]) == ("b", "a", "here")
        assert (line["reason"], line["location"]) == ("NETFILTER_DROP", "nft_do_chain")
        assert line["time_unix_ns"] == 10**18 + 5
    said = outcome.stderr
    assert "watching namespace fl on node-a, node-b: a, b, c; for 1 s" in said
    assert said.count("node node-c: has no agent; what is dropped there is not seen") == 1
    assert "coverage 67%: 2 of 3 pods were watched the whole time, on 2 of 3 nodes" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--agents"], "add --runtime kubernetes"),
        (["--agents-in", "x"], "--agents-in: is about agents"),
        (["--runtime", "kubernetes", "--cert", "a", "--key", "b", "--ca", "c"], "--cert: is about agents"),
        (["--runtime", "kubernetes", "--agents", "--cert", "a"], "--cert, --key and --ca go together"),
        (["--runtime", "kubernetes", "--agents", "--node", "a"], "agents know theirs: leave it out"),
        (["--runtime", "kubernetes", "--agent", "host"], "--agent host: expected HOST:PORT"),
        (["run", "--agents"], "--agents: is about pods that run now"),
    ],
)
def test_what_does_not_go_together_is_one_line(words: list[str], said: str) -> None:
    outcome = CliRunner().invoke(ztprobe, ["drops", *words])
    assert isinstance(outcome.exception, UsageError)
    assert said in str(outcome.exception)
