"""Leases through an agent's session, and `ztprobe profile --agents` as far as it needs no pods."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.unit.test_leases import SCHEDULE, a_lease
from tests.unit.test_nodes_leases import COUNTED, HERE, SLOW, A, B, wanted
from ztprobe import paths
from ztprobe.agent.interface import LeaseRequest, LeaseState
from ztprobe.agent.lease_calls import LEASE_CALLS, LeaseCaller
from ztprobe.agent.node_leases import NodeLeases
from ztprobe.agent.placed_leases import PlacedLeases
from ztprobe.agent.service.client import Connection
from ztprobe.agent.service.lease_client import LeaseClient
from ztprobe.agent.service.server import AgentServer
from ztprobe.agent.service.session import BESIDE_CALLS, Sessions
from ztprobe.cli.entry import ztprobe
from ztprobe.errors import EnforcementError, PreflightError, UsageError, ZtprobeError
from ztprobe.leases import records
from ztprobe.pods.model import NOWHERE
from ztprobe.profile.model import Profile


class Carried(LeaseCaller):
    """Calls as JSON, to a machine that started at another time."""

    def __init__(self, leases: Any, monkeypatch: pytest.MonkeyPatch, ahead_ns: int) -> None:
        self.leases_there, self._patch, self._ahead_ns = leases, monkeypatch, ahead_ns

    def _ask(self, call: str, **arguments: Any) -> Any:
        real = records.now_ns
        with self._patch.context() as patch:
            patch.setattr("ztprobe.agent.lease_calls.now_ns", lambda: real() + self._ahead_ns)
            return json.loads(json.dumps(LEASE_CALLS[call](self.leases_there, arguments)))


def test_times_are_told_by_the_clock_of_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_ns = 10**15
    lease = a_lease(Profile(name="s", schedule=SCHEDULE), left_s=60)
    lease.expires_ns += ahead_ns
    now_ns = records.now_ns()
    step = records.StepInForce(
        number=1, step=1, since_ns=now_ns + ahead_ns, until_ns=now_ns + ahead_ns + 10**9
    )

    class There:
        def leases(self) -> list[LeaseState]:
            return [LeaseState(lease=lease, counted=COUNTED, step=step)]

    (got,) = Carried(There(), monkeypatch, ahead_ns).leases()
    assert got.lease.remaining_s == pytest.approx(60, abs=1)
    assert got.step is not None
    assert got.step.since_ns == pytest.approx(now_ns, abs=1e9)
    assert got.step.until_ns == pytest.approx(now_ns + 1e9, abs=1e9)


def test_a_lease_is_on_pods_that_the_agent_has_placed_and_as_it_planned_it() -> None:
    class There:
        def plan_lease(self, asked: LeaseRequest) -> records.Lease:
            lease = a_lease(SLOW)
            lease.pods, lease.peers = asked.pods, asked.peers
            return lease

        def begin_lease(self, lease: records.Lease) -> None:
            begun.append(lease)

    begun: list[records.Lease] = []
    leases = PlacedLeases(There(), {"a": HERE["a"]})  # type: ignore[arg-type]
    false = dataclasses.replace(A, netns=Path("/proc/1/ns/net"), netns_inode=1)
    lease = leases.plan_lease(wanted(false, peers=(dataclasses.replace(false, name="p", uid="p"),)))
    assert lease.pods == (HERE["a"],)
    assert lease.peers is not None
    assert (lease.peers[0].netns, lease.peers[0].is_here) == (NOWHERE, False)
    leases.begin_lease(dataclasses.replace(lease, pods=(false,), points=()))
    assert begun == [lease]  # its own
    with pytest.raises(UsageError, match="has planned no lease"):
        leases.begin_lease(lease)
    for other in (B, dataclasses.replace(A, uid="another"), dataclasses.replace(A, namespace="kube-system")):
        with pytest.raises(UsageError, match="the agent has found no such pod on its node"):
            leases.plan_lease(wanted(other))


@pytest.mark.parametrize("name", ["../../etc", "", "abcde", "ABCDEF", "abcdef/"])
def test_a_name_that_is_none_makes_no_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    request = dataclasses.replace(wanted(HERE["a"]), lease_id=name, backend="tbf")
    if name:  # empty: a new one, as None
        with pytest.raises(UsageError, match="is no name of a lease: expected six hexadecimal digits"):
            NodeLeases().plan_lease(request)
    a_lease(SLOW).write()
    (taken,) = records.all_leases()
    with pytest.raises(EnforcementError, match=f"there is a lease {taken.id} already"):
        NodeLeases().plan_lease(dataclasses.replace(request, lease_id=taken.id))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("ZTPROBE_STATE_DIR", str(tmp_path / "state"))
    sessions = Sessions(tmp_path / "agent", queue_bytes=1 << 20, orphan_s=60)
    address = f"unix:{tmp_path}/socket"
    with closing(AgentServer(address, sessions, tls=None, node="node-a")):
        yield address
    sessions.close()


def test_a_session_for_leases_asks_for_nothing_else(served: str) -> None:
    with closing(Connection(served, None)) as connection, LeaseClient("node-a", connection) as client:
        assert client.leases() == []
        with pytest.raises(UsageError, match="node node-a: add_pod: not in a session for leases"):
            client._ask("add_pod", pod={})
        with pytest.raises(UsageError, match="node node-a: fl/a: the agent has found no such pod"):
            client.plan_lease(wanted(HERE["a"]))
        assert connection.status()["sessions"] == []  # nobody watches
        assert "apply" not in BESIDE_CALLS


def test_only_so_many_ask_at_once(served: str) -> None:
    with closing(Connection(served, None)) as connection:
        clients = [LeaseClient("node-a", connection) for _ in range(4)]
        with pytest.raises(EnforcementError, match="node node-a: 4 others ask the agent for leases"):
            LeaseClient("node-a", connection)
        for client in clients:
            client.leave()
        LeaseClient("node-a", connection).leave()


def test_what_a_killed_agent_left_of_a_session_for_leases_is_forgotten(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "agent", queue_bytes=1 << 20, orphan_s=60)
    session = sessions.open("leases", probes=True, is_beside=True)
    assert session.agent is not None
    session.agent.close()
    (tmp_path / "agent" / "service.json").unlink()
    again = Sessions(tmp_path / "agent", queue_bytes=1 << 20, orphan_s=60)
    assert again.all() == []
    assert not session.directory.exists()
    again.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["apply", "net5", "-l", "a", "--agents", "--runtime", "local"], "leave --runtime local out"),
        (["apply", "net5", "-l", "a", "--agents", "--node", "x"], "agents know theirs: leave it out"),
        (["apply", "net5", "-l", "a", "--agents", "--run", "x"], "leave it out with --agents"),
        (["apply", "net5", "-l", "a", "--agent", "host"], "--agent host: expected HOST:PORT"),
        (["apply", "net0", "-l", "a", "--agents"], "net0 emulates nothing"),
        (["apply", "net5", "-l", "a", "--agents-in", "x"], "--agents-in: is about agents"),
        (["status", "--context", "x"], "--context: is about a cluster's agents: give --agents"),
        (["clear", "--kubeconfig", "x"], "--kubeconfig: is about a cluster's agents"),
        (["verify", "--agents", "--node", "x"], "agents know theirs: leave it out"),
        (["verify", "--agents", "--cert", "x"], "--cert, --key and --ca go together"),
    ],
)
def test_what_does_not_go_together_is_one_line(words: list[str], said: str) -> None:
    outcome = CliRunner().invoke(ztprobe, ["profile", *words])
    assert isinstance(outcome.exception, UsageError), outcome.output
    assert said in str(outcome.exception)


def answering(leases: dict[str, list[records.Lease] | ZtprobeError]) -> Callable[..., Any]:
    """Stands for asking all agents."""

    class Client:
        def __init__(self, node: str, there: list[records.Lease]) -> None:
            self.node, self.there = node, there

        def leases(self) -> list[LeaseState]:
            return [LeaseState(lease=one, counted=COUNTED, step=None) for one in self.there]

        def end_leases(self, ids: list[str]) -> list[records.Lease]:
            assert ids
            ended = [one for one in self.there if one.id in ids]
            leases[self.node] = [one for one in self.there if one.id not in ids]
            return ended

    def ask(_access: Any, question: Any) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for node, there in list(leases.items()):
            if isinstance(there, ZtprobeError):
                found[node] = {"problem": str(there)}
            else:
                client = Client(node, there)
                found[node] = question.keywords["then"](client, client.leases())
        return found

    return ask


def test_leases_are_ended_by_name_on_the_nodes_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = a_lease(SLOW), a_lease(SLOW)
    nodes: dict[str, Any] = {
        "node-a": [one, other],
        "node-b": [one],
        "node-c": PreflightError("the agent at h:3 does not answer"),
    }
    monkeypatch.setattr("ztprobe.cli.profile_agents.ask_agents", answering(nodes))

    def clear(*words: str) -> Any:
        return CliRunner().invoke(ztprobe, ["profile", "clear", "--agents", *words])

    wrong = clear("zzzzzz", one.id)
    assert str(wrong.exception) == (
        f"no lease zzzzzz: there are {', '.join(sorted((one.id, other.id)))};"
        " node node-c: the agent at h:3 does not answer"
    )
    assert len(nodes["node-a"]) == 2
    done = clear(one.id)
    assert done.exit_code == 3
    assert done.stdout.splitlines() == [
        f"node {node}: lease {one.id} ended: slow is off p" for node in ("node-a", "node-b")
    ]
    assert done.stderr.splitlines() == ["node node-c: the agent at h:3 does not answer"]
    assert nodes["node-a"] == [other]
    del nodes["node-c"]
    told = clear("--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout) == {
        "cleared": [other.id],
        "nodes": {"node-a": [other.id], "node-b": []},
        "problems": {},
    }
    assert clear().stdout == "no profile is in force\n"
    shown = CliRunner().invoke(ztprobe, ["profile", "status", "--agents"])
    assert shown.stdout == "no profile is in force on node-a, node-b\n"
