"""A study's runs on several nodes at once: which nodes take part, who makes what, and what ends with whom."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pickle
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_study import PAIR
from tests.unit.test_study_contention import noting
from tests.unit.test_study_on_cluster import Asked, asking, node, pod
from ztprobe.cli import main
from ztprobe.errors import PreflightError, UsageError, WorkloadError, ZtprobeError
from ztprobe.experiment.names import Experiment
from ztprobe.kubernetes import api
from ztprobe.kubernetes.agents import AgentAddress
from ztprobe.kubernetes.api import Api
from ztprobe.progress import QuietProgress
from ztprobe.runtime.cluster.agent_nodes import RunAgents
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.interface import Enforcement, NotProven
from ztprobe.study import at_once, nodes_of_study
from ztprobe.study.at_once import Ended, NodeRun
from ztprobe.study.cluster_runs import ClusterRuns
from ztprobe.study.execution import Tally
from ztprobe.study.plan import Cell, Study
from ztprobe.study.run_process import StudyProcess, _portable

STUDY = dataclasses.replace(PAIR, repetitions=2, retries=1)
RATE_ALONE = Study(name="x", rounds=7, cells=(Cell(experiment=Experiment(profile="net5", level=0)),))
NAMES = ("node-a", "node-b", "node-c")
PLACES = [ClusterPlace(node=name) for name in NAMES[:2]]


def agents(*names: str) -> RunAgents:
    return RunAgents(addresses=tuple(AgentAddress(node=n, address=f"{n}:7443") for n in names), tls=None)


def told(name: str, boot: str = "", **spec: Any) -> dict[str, Any]:
    """What the API says of a node."""
    one = node(name)
    one["spec"] = spec
    one["status"] |= {
        "nodeInfo": {"bootID": boot or name, "kernelVersion": "6.12", "architecture": "amd64"},
        "capacity": {"cpu": "8"},
    }
    return one


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A cluster of three nodes whose kernels have netem."""
    found = Asked([told(name) for name in NAMES])
    monkeypatch.setattr(ClusterPlace, "api", lambda _place: found)
    monkeypatch.setattr(nodes_of_study, "Connection", offering({}))
    return found


def offering(without: dict[str, str | None]) -> Callable[..., Any]:
    """Connections to agents; those of some nodes offer no delay, or do not answer."""

    class Offers:
        def __init__(self, address: str, _tls: object, **_more: object) -> None:
            self.name = address.partition(":")[0]

        def offers(self) -> dict[str, Any]:
            problem = without.get(self.name, "")
            if problem:
                raise ZtprobeError(problem)
            return {"delay": "netem" if self.name not in without else None}

        def close(self) -> None: ...

    return Offers


def places(study: Study, tmp_path: Path, said: list[str], *names: str) -> list[str | None]:
    place = ClusterPlace(image="x")
    made, found = nodes_of_study.places_of(study, place, agents(*names or NAMES), tmp_path, noting(said))
    assert (made.runtime, made.image) == ("kubernetes", "x")
    assert all(one.agents is not None and len(one.agents.addresses) == 1 for one in found)
    return [one.node for one in found]


def test_every_node_with_an_agent_takes_a_run_at_a_time(asked: Asked, tmp_path: Path) -> None:
    said: list[str] = []
    assert places(STUDY, tmp_path, said, "node-c", "node-a") == ["node-a", "node-c"]
    assert said == ["runs are made on node-a and node-c, one at a time on each"]


def test_nodes_that_are_one_machine_share_a_turn(asked: Asked, tmp_path: Path) -> None:
    asked.nodes = [told("node-a", "1"), told("node-b", "2"), told("node-c", "1")]
    said: list[str] = []
    assert places(STUDY, tmp_path, said) == ["node-a", "node-b"]
    same = "is the same machine as node-a (boot id 1), and would share its cores"
    assert said[0] == f"node node-c: no run is made there: {same}"


def test_a_node_that_cannot_make_every_run_makes_none(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]
    asked.nodes = [told("node-a", unschedulable=True), told("node-b", taints=away), told("node-c")]
    said: list[str] = []
    assert places(STUDY, tmp_path, said, *NAMES, "node-x") == ["node-c"]
    why = " ".join(said)
    assert "node node-a: no run is made there: is cordoned" in why
    assert "node-b: no run is made there: has the taint node-role.kubernetes.io/control-plane:NoSch" in why
    assert "node node-x: no run is made there: the cluster has none of that name" in why
    asked.nodes[2]["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    with pytest.raises(PreflightError, match=r"no node with an agent can make .*node node-c: is not ready"):
        places(STUDY, tmp_path, said)
    asked.nodes = [told(name) for name in NAMES]
    asked.pods = [pod(asking("1500m"), where="node-a")]
    said.clear()
    assert places(STUDY, tmp_path, said) == ["node-b", "node-c"]
    assert "node-a: no run is made there: net0-sec0: its pods ask for 0.76 CPUs, and 0.5 are left" in said[0]
    asked.pods = []
    monkeypatch.setattr(nodes_of_study, "Connection", offering({"node-a": None, "node-b": "does not answer"}))
    said.clear()
    assert places(STUDY, tmp_path, said) == ["node-c"]
    assert "node-a: no run is made there: its kernel has no netem (CONFIG_NET_SCH_NETEM), which" in said[0]
    assert said[1] == "node node-b: no run is made there: does not answer"
    assert len(places(RATE_ALONE, tmp_path, said)) == 3  # a rate is to be had everywhere


def test_nodes_that_differ_are_told_of(asked: Asked, tmp_path: Path) -> None:
    asked.nodes[1]["status"]["capacity"] = {"cpu": "64"}
    said: list[str] = []
    places(STUDY, tmp_path, said, "node-a", "node-b")
    kinds = [f"{name} {cpus} CPUs, amd64, Linux 6.12" for name, cpus in (("node-a", 8), ("node-b", 64))]
    assert said[-1] == f"nodes differ, and times with them: {'; '.join(kinds)}"


def test_an_agent_that_is_at_work_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_of_study, "_POLL_S", 0.0)
    busy = {"run": "ab12cd", "watching": True, "silent_s": 3.0}
    answers = [[busy], [busy | {"silent_s": 89.0}], [busy | {"silent_s": 91.0}, busy | {"watching": False}]]

    class Status:
        def __init__(self, *_: object, **__: object) -> None: ...

        def status(self) -> dict[str, Any]:
            return {"sessions": answers.pop(0)}

        def close(self) -> None: ...

    monkeypatch.setattr(nodes_of_study, "Connection", Status)
    said: list[str] = []
    nodes_of_study.await_free(agents("node-a"), noting(said))
    assert (said, answers) == (["its agent is at work for run ab12cd: waiting until that has ended"], [])


def test_what_another_process_makes_is_not_taken_for_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ClusterPlace, "api", lambda _place: pytest.fail("nobody is to be asked"))
    making, other = (ClusterRuns(tmp_path, place) for place in PLACES)
    making.begins("aaaaaa")
    assert other.left() == []  # of another node
    everywhere = ClusterRuns(tmp_path, ClusterPlace())
    assert everywhere.left() == ["aaaaaa"]
    began_s = time.monotonic()
    everywhere.remove_left(QuietProgress(), 0.6)  # who makes it holds on to it
    assert time.monotonic() - began_s >= 0.6
    assert everywhere.left() == ["aaaaaa"]


class Fake:
    """A run in place of a process: says one line and then what came of it."""

    ends: dict[str, Any] = {}  # noqa: RUF012
    begun: list[tuple[str, str, int]] = []  # noqa: RUF012
    at_work = 0
    most_at_work = 0
    given_up: list[str] = []  # noqa: RUF012

    def __init__(self, task: NodeRun) -> None:
        self.task, self.name = task, task.name
        self.told, theirs = multiprocessing.Pipe(duplex=False)
        end = Fake.ends.pop(self.name, Ended(is_there=True, attempts=1, is_cluster_away=False))
        theirs.send("  round 1 of 7")
        if end is not None:
            theirs.send(end)
        theirs.close()
        Fake.begun.append((self.name, str(task.place.node), task.number))
        Fake.at_work += 1
        Fake.most_at_work = max(Fake.most_at_work, Fake.at_work)

    hear = StudyProcess.hear

    def give_up(self) -> None:
        Fake.given_up.append(self.name)

    def await_end(self) -> str:
        Fake.at_work -= 1
        return "the process that made it has ended before it was through (SIGKILL)"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(at_once, "StudyProcess", Fake)
    monkeypatch.setattr(ClusterRuns, "remove_left", lambda *_: None)
    Fake.ends, Fake.begun, Fake.given_up, Fake.at_work, Fake.most_at_work = {}, [], [], 0, 0
    return Fake


def test_runs_go_to_free_nodes_in_the_plans_order(fake: type[Fake], tmp_path: Path) -> None:
    said: list[str] = []
    tally = at_once.run_at_once(STUDY, PLACES, tmp_path / "out", noting(said))
    assert (tally.done, tally.failed, tally.attempts, tally.there) == (4, 0, 4, 0)
    names = [f"{one.cell.name}-r{one.repetition:02d}" for one in STUDY.runs()]
    assert [(name, number) for name, _, number in fake.begun] == list(zip(names, range(1, 5), strict=True))
    assert {node for _, node, _ in fake.begun} == {"node-a", "node-b"}
    assert fake.most_at_work == 2
    assert said[0].endswith(": round 1 of 7")


def test_what_is_there_is_not_made_again(fake: type[Fake], tmp_path: Path) -> None:
    there = tmp_path / "out" / next(STUDY.runs()).directory
    at_once.run_at_once(dataclasses.replace(STUDY, repetitions=2), PLACES, tmp_path / "out", QuietProgress())
    fake.begun.clear()
    there.mkdir(parents=True)
    (there / "run.json").touch()
    tally = at_once.run_at_once(STUDY, PLACES, tmp_path / "out", QuietProgress())
    assert (tally.there, tally.done) == (1, 3)
    assert [number for *_, number in fake.begun] == [2, 3, 4]


def test_a_process_that_ends_without_a_word_is_a_failed_attempt(fake: type[Fake], tmp_path: Path) -> None:
    first = next(STUDY.runs())
    name = f"{first.cell.name}-r{first.repetition:02d}"
    fake.ends = {name: None}
    said: list[str] = []
    tally = at_once.run_at_once(STUDY, PLACES, tmp_path / "out", noting(said))
    assert (tally.done, tally.failed, tally.attempts) == (4, 0, 5)
    (kept,) = (tmp_path / "out").glob("attempts/*/failure.json")
    failure = json.loads(kept.read_text())
    assert (failure["class"], kept.parent.name) == ("workload", f"{name}-1")
    assert "ended before it was through (SIGKILL)" in failure["message"]
    assert any(f"{name}: workload: the process" in line for line in said)
    fake.ends = {name: None}
    once = dataclasses.replace(STUDY, retries=0)
    tally = at_once.run_at_once(once, PLACES, tmp_path / "other", QuietProgress())
    assert (tally.done, tally.failed) == (3, 1)


def test_what_concerns_all_runs_ends_the_study_and_every_run(fake: type[Fake], tmp_path: Path) -> None:
    second = list(STUDY.runs())[1]
    fake.ends = {f"{second.cell.name}-r{second.repetition:02d}": PreflightError("the API does not answer")}
    with pytest.raises(PreflightError, match="the API does not answer"):
        at_once.run_at_once(STUDY, PLACES, tmp_path / "out", QuietProgress())
    assert fake.at_work == 0
    assert fake.given_up


def task(tmp_path: Path, kubeconfig: str) -> NodeRun:
    return NodeRun(
        study=dataclasses.replace(STUDY, runtime="kubernetes"),
        planned=next(STUDY.runs()),
        out=tmp_path / "out",
        place=ClusterPlace(node="node-a", kubeconfig=kubeconfig, agents=agents("node-a")),
        offloads=True,
        tally=Tally(planned=4),
        number=1,
    )


@pytest.fixture
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZTPROBE_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.usefixtures("own_state")
def test_a_process_of_its_own_says_what_it_does_and_what_ended_it(tmp_path: Path) -> None:
    one = StudyProcess(task(tmp_path, str(tmp_path / "none")))
    try:
        line = one.hear()
        assert line == f"  1 of 4: {one.task.name}"
        with pytest.raises(PreflightError, match="none: "):
            list(iter(one.hear, None))
    finally:
        assert one.await_end().endswith("through")
    assert not list((tmp_path / "out").rglob("*partial*"))


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:%d"}}]
users: [{name: u, user: {token: t}}]
"""


@pytest.mark.usefixtures("own_state")
def test_a_process_that_is_given_up_ends_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        (tmp_path / "kubeconfig").write_text(KUBECONFIG % silent.getsockname()[1])
        one = StudyProcess(task(tmp_path, str(tmp_path / "kubeconfig")))
        silent.settimeout(60)
        connection, _ = silent.accept()
    with connection:
        one.give_up()
        time.sleep(0.5)  # it is told of its end first, and of the server's then
    assert one.await_end().endswith(f"through (status {128 + signal.SIGTERM})")
    assert not list((tmp_path / "out").rglob("*partial*"))
    assert not list((tmp_path / "state").glob("*/journal.json"))
    # The next call looks after it.
    assert len(ClusterRuns(tmp_path / "out", ClusterPlace(node="node-a")).left()) == 1


def test_an_error_crosses_to_another_process_as_what_it_is() -> None:
    proven = NotProven(Enforcement(network_policy_expected=True, mtls_expected=False))
    for error in (proven, WorkloadError("x"), ValueError("a bug")):
        there = pickle.loads(pickle.dumps(_portable(error)))
        assert isinstance(there, ZtprobeError) == isinstance(error, ZtprobeError)
        assert str(error) in str(there)
    assert "ValueError: a bug" in str(there)
    assert there.__notes__


def test_a_cluster_is_logged_in_to_anew_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_client", lambda kubeconfig, context: (kubeconfig, context))
    made = pickle.loads(pickle.dumps(Api("file", "context")))
    assert made._core == ("file", "context")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--agents",), "--agents and --agent are about a cluster's pods: add --runtime kubernetes"),
        (("--agents-in", "x"), "--agents-in: is about agents: give --agents, or --agent ADDRESS"),
        (("--runtime", "kubernetes", "--agents", "--node", "x"), "agents know theirs: leave it out"),
    ],
)
def test_options_of_agents_go_together(given: tuple[str, ...], words: str, capsys) -> None:
    assert main(["sweep", "smoke", *given]) == UsageError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
