"""Studies whose runs are made on a cluster: what is refused, what a node has room for, what is made anew."""

from __future__ import annotations

import dataclasses
import json
import socket
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from analysis.results.study import study_report
from analysis.results.study_text import runtime_words
from tests.schemas import problems
from tests.unit.test_study import PAIR, Made, made
from tests.unit.test_study_contention import noting
from ztprobe.cli import main
from ztprobe.errors import PreflightError, RunDirError, UsageError
from ztprobe.experiment.level_switch import parse_level_switch
from ztprobe.experiment.names import Experiment
from ztprobe.progress import QuietProgress
from ztprobe.runtime.cluster.experiment import experiment_documents
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.traced import traced_pods
from ztprobe.study import cluster_runs, execution, on_cluster
from ztprobe.study.cluster_runs import ClusterRuns
from ztprobe.study.plan import Cell, Study
from ztprobe.study.room import Room, asked_by, left_on, quantity, shortage
from ztprobe.study.run_maker import options_of

__all__ = ("made",)  # a fixture

HERE = ClusterPlace(node="node-a")
STUDY = dataclasses.replace(PAIR, runtime="kubernetes", repetitions=1, retries=0)


@pytest.fixture
def cluster(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Runs that say that they were made on a cluster; what they leave there is somebody else's business."""
    made.runtime = "kubernetes"
    monkeypatch.setattr(ClusterRuns, "remove_left", lambda _self, _progress: None)
    return made


def node(name: str = "node-a", cpu: str = "2", memory: str = "8Gi", pods: str = "110") -> dict[str, Any]:
    allocatable = {"cpu": cpu, "memory": memory, "pods": pods}
    return {"metadata": {"name": name}, "status": {"allocatable": allocatable}}


def pod(*containers: dict[str, Any], where: str = "node-a", phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {"name": "one"},
        "spec": {"nodeName": where, "containers": list(containers)},
        "status": {"phase": phase},
    }


def asking(cpu: str, memory: str = "0", **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu, "memory": memory}}, **more}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", "0.1"),
        ("2", "2"),
        (4, "4"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("384Mi", str(384 * 2**20)),
        ("1Gi", str(2**30)),
        ("1k", "1000"),
        ("1e3", "1000"),
        ("12E", "12e18"),
        ("16266124Ki", str(16266124 * 1024)),
        (None, "0"),
        ("many", "0"),
    ],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: object, value: str) -> None:
    assert quantity(text) == Decimal(value)


def test_what_pods_ask_for_and_what_a_node_has_left() -> None:
    init = [asking("1"), asking("20m", "64Mi", restartPolicy="Always"), asking("50m")]
    one = {"spec": {"initContainers": init, "containers": [asking("100m", "384Mi"), asking("10m")]}}
    assert asked_by(one) == Room(cpus=Decimal(1), memory_bytes=Decimal(448 * 2**20), pods=1)
    others = [
        pod(asking("500m")),
        pod(asking("1"), where="node-b"),
        pod(asking("1"), phase="Succeeded"),
        pod({}),
    ]
    left = left_on(node(), others)
    assert (left.cpus, left.pods) == (Decimal("1.5"), 108)
    assert shortage(Room(cpus=Decimal("1.5"), pods=3), left) is None
    assert shortage(Room(cpus=Decimal("1.6")), left) == "1.6 CPUs, and 1.5 are left"
    assert shortage(Room(memory_bytes=Decimal(9 * 2**30)), left) == "9216 MiB of memory, and 8192 are left"
    assert shortage(Room(pods=109), left) == "room for 109 pods, and there is room for 108"


def test_a_run_of_five_clients_asks_for_what_the_page_on_clusters_says() -> None:
    cell = Cell(experiment=Experiment(profile="net0", level=3))
    documents = traced_pods(experiment_documents("000000", options_of(STUDY, cell)))
    asked = [asked_by(one) for one in documents if one["kind"] == "Pod"]
    assert len(asked) == 6
    assert sum(one.cpus for one in asked) == Decimal("0.88")  # 0.82, and a hold of 0.01 in each pod


def test_a_node_is_found_by_what_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("node-b"), node("node-a")]
    assert on_cluster.this_node(nodes, "node-a")["metadata"]["name"] == "node-a"
    monkeypatch.setattr(socket, "gethostname", lambda: "Node-B")
    assert on_cluster.this_node(nodes, None)["metadata"]["name"] == "node-b"
    with pytest.raises(
        UsageError, match=r"this is node x, as --node .* none of that name \(node-a, node-b\)"
    ):
        on_cluster.this_node(nodes, "x")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"congestion_control": "bbr"}, "net0-sec0-bbr: congestion_control bbr is for this machine's own"),
        (
            {"level_switch": parse_level_switch("sec1@round2", Experiment(profile="net0", level=0), 7)},
            "--switch-level: is for this machine's own runtime",
        ),
        ({"fl": (("edges", 2),)}, "net0-sec0-edges-2: --fl-edges: is for this machine's own runtime"),
    ],
)
def test_what_is_not_to_be_had_on_a_cluster_is_refused(
    cell: dict[str, Any], words: str, tmp_path: Path
) -> None:
    wrong = Cell(experiment=Experiment(profile="net0", level=0), **cell)
    study = Study(name="x", rounds=7, cells=(PAIR.cells[0], wrong))
    with pytest.raises(UsageError) as raised:
        on_cluster.prepared(study, HERE, tmp_path, QuietProgress())
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@dataclasses.dataclass
class Asked:
    """An API with these answers."""

    nodes: list[dict[str, Any]]
    pods: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    refuses: str = ""

    def version(self) -> tuple[tuple[int, int], str]:
        return (1, 33), "v1.33"

    def everywhere(self, kind: str, _group: str, _version: str) -> list[dict[str, Any]]:
        if self.refuses:
            raise PreflightError(self.refuses)
        return self.nodes if kind == "nodes" else self.pods


def test_a_node_without_room_is_refused_and_what_is_left_of_ours_takes_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api = Asked([node(cpu="1")])
    monkeypatch.setattr(ClusterPlace, "api", lambda _place: api)
    monkeypatch.setattr(on_cluster, "check_on_cluster", lambda _profiles, _out: None)
    study, place = on_cluster.prepared(
        PAIR, ClusterPlace(node="node-a", image="x"), tmp_path, QuietProgress()
    )
    assert (study.runtime, study.image, place.node) == ("kubernetes", "x", "node-a")
    api.pods = [pod(asking("500m"))]
    with pytest.raises(PreflightError, match=r"net0-sec0: its pods ask for 0.76 CPUs, and 0.5 are left on"):
        on_cluster.prepared(PAIR, HERE, tmp_path, QuietProgress())
    api.pods[0]["metadata"]["labels"] = {"ztprobe.run": "ab12cd"}  # of an earlier call: removed before a run
    ClusterRuns(tmp_path, HERE).begins("ab12cd")
    on_cluster.prepared(PAIR, HERE, tmp_path, QuietProgress())
    api.refuses = "nodes is forbidden"
    said: list[str] = []
    assert on_cluster.prepared(PAIR, HERE, tmp_path, noting(said))[1] == HERE
    assert "how much room they have, is not looked at: nodes is forbidden" in said[0]


def test_a_local_study_is_written_down_as_before_there_were_others() -> None:
    assert not {"runtime", "image"} & PAIR.as_dict().keys()
    assert STUDY.as_dict()["runtime"] == "kubernetes"


def test_a_study_of_one_runtime_does_not_go_on_with_another(cluster: Made, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    execution.run_study(STUDY, out, QuietProgress(), HERE)
    with pytest.raises(RunDirError, match="holds a study of --runtime kubernetes, and times of two"):
        execution.run_study(dataclasses.replace(STUDY, runtime="local"), out, QuietProgress())
    (tmp_path / "plan.yaml").write_text("name: pair\nrounds: 7\nfactors: {level: [0]}")
    assert main(["sweep", str(tmp_path / "plan.yaml"), "--out", str(out)]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    report = study_report(out)
    assert problems("study-report", report) == []
    assert runtime_words(report) == "runtime: kubernetes, node node-a"
    two = report | {"nodes": ["node-a", "node-b"]}
    assert runtime_words(two).startswith(
        "runtime: kubernetes, nodes node-a, node-b; what differs between nodes"
    )
    cluster.runtime = "local"
    local = tmp_path / "local"
    execution.run_study(dataclasses.replace(PAIR, repetitions=1), local, QuietProgress())
    assert study_report(local)["nodes"] == []
    with pytest.raises(RunDirError, match="holds a study of --runtime local"):
        execution.run_study(STUDY, local, QuietProgress(), HERE)
    for directory in local.glob("runs/net2-sec3/r*"):  # somebody puts one of them among the cluster's
        target = out / "runs" / "net2-sec3" / "r02"
        directory.rename(target)
    with pytest.raises(
        RunDirError, match="r02: was made by the runtime local, and the study's is kubernetes"
    ):
        study_report(out)


def test_a_cluster_that_does_not_answer_costs_an_attempt_and_twice_in_a_row_the_study(
    cluster: Made, tmp_path: Path
) -> None:
    out, away = tmp_path / "out", PreflightError("the API does not answer")
    cluster.failing = {1: away}
    with pytest.raises(PreflightError):  # nothing has shown yet that it can be done there
        execution.run_study(STUDY, out, QuietProgress(), HERE)
    assert not (out / "attempts").exists()
    cluster.failing = {3: away, 4: away}
    with pytest.raises(PreflightError):
        execution.run_study(STUDY, out, QuietProgress(), HERE)
    classes = [json.loads(file.read_text())["class"] for file in out.glob("attempts/*/failure.json")]
    assert classes == ["cluster"]
    cluster.failing = {}
    tally = execution.run_study(STUDY, out, QuietProgress(), HERE)
    assert (tally.there, tally.done, tally.failed) == (1, 1, 0)  # no retries: it was not the run's failure
    report = study_report(out)
    assert report["failures"] == {"cluster": 1}
    assert sum(row["failed_attempts"] for row in report["outcomes"]) == 0


def test_a_passing_trouble_of_the_cluster_does_not_end_a_study(cluster: Made, tmp_path: Path) -> None:
    cluster.failing = {2: PreflightError("quota"), 4: PreflightError("quota")}
    study = dataclasses.replace(STUDY, repetitions=2)
    tally = execution.run_study(study, tmp_path / "out", QuietProgress(), HERE)
    assert (tally.done, tally.failed, tally.attempts) == (4, 0, 6)


def test_a_cluster_that_is_away_at_the_end_costs_no_report(
    cluster: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_self: ClusterRuns, _progress: object) -> None:
        if len(cluster.names) == 2:
            raise PreflightError("the API does not answer")

    monkeypatch.setattr(ClusterRuns, "remove_left", away)
    said: list[str] = []
    tally = execution.run_study(STUDY, tmp_path / "out", noting(said), HERE)
    assert tally.done == 2
    assert said[-1].startswith("the API does not answer; what may be left on the cluster goes when")
    assert len(ClusterRuns(tmp_path / "out", HERE).left()) == 2


def test_what_an_earlier_call_left_on_the_cluster_is_removed_and_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, there = {"aaaaaa": 3, "bbbbbb": 0}, []

    class Changes:
        def __enter__(self) -> Changes:
            return self

        def __exit__(self, *_: object) -> None: ...

        def end_pods(self, selector: str, _namespace: str, _grace_s: int) -> None:
            here[selector.partition("=")[2]] = 0

        def remove(self, selector: str, namespace: str | None) -> list[str]:
            there.append((selector, namespace))
            return []

    class Api:
        def objects(self, _kind: str, namespace: str, selector: str) -> list[object]:
            assert namespace == f"fl-{selector.partition('=')[2]}"
            return [{}] * here[selector.partition("=")[2]]

    monkeypatch.setattr(ClusterPlace, "api", lambda _place: Api())
    monkeypatch.setattr(cluster_runs, "changing", lambda _api: Changes())
    runs = ClusterRuns(tmp_path, HERE)
    said: list[str] = []
    runs.remove_left(noting(said))  # nothing was begun: nobody is asked
    for run in here:
        runs.begins(run)
    (tmp_path / "on-cluster" / "README").touch()  # somebody else's
    runs.remove_left(noting(said))
    assert there == [("ztprobe.run=aaaaaa", None), ("ztprobe.run=bbbbbb", None)]
    assert said == ["run aaaaaa was still on the cluster and is removed: 3 pods"]
    assert runs.left() == []


@pytest.mark.parametrize("option", ["--node", "--namespace", "--image", "--context", "--kubeconfig"])
def test_what_is_about_a_cluster_needs_one(option: str, capsys) -> None:
    assert main(["sweep", "smoke", option, "x"]) == 2
    assert capsys.readouterr().err == (
        f"ztprobe: {option}: needs --runtime kubernetes, whose pods it is about\n"
    )
