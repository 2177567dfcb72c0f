"""A run that is traced on a cluster, where no cluster is needed: its pods, their states, gates and logs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.unit.test_cluster_manifests import VERSIONS
from tests.unit.test_deploy import named, options
from ztprobe.agent import pod_access_here
from ztprobe.errors import PreflightError, UsageError, WorkloadError
from ztprobe.pods.cgroup import PodProcesses
from ztprobe.pods.model import Pod
from ztprobe.progress import PlainProgress, QuietProgress
from ztprobe.runtime.cluster import gate, run_pods, source
from ztprobe.runtime.cluster.experiment import experiment_documents
from ztprobe.runtime.cluster.kept_logs import KeptLog
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.pod_states import exits, hindrance, is_at_gate, short_of_memory
from ztprobe.runtime.cluster.run_nodes import OneNode
from ztprobe.runtime.cluster.run_pods import RunPods
from ztprobe.runtime.cluster.runtime import ClusterRuntime
from ztprobe.runtime.cluster.traced import traced_pods
from ztprobe.runtime.local.journal import Journal, clean_leftovers


@pytest.mark.parametrize("level", range(4))
def test_pods_behind_gates_take_the_place_of_jobs(level: int) -> None:
    documents = traced_pods(experiment_documents("ab12cd", options(level)))
    pods = [d for d in documents if d["kind"] == "Pod"]
    assert not [d for d in documents if d["kind"] in ("Job", "Deployment")]
    assert [pod["metadata"]["name"] for pod in pods] == ["fl-server", *(f"fl-client-{i}" for i in range(5))]
    for pod in pods:
        assert pod["metadata"]["namespace"] == "fl-ab12cd"
        assert pod["metadata"]["labels"]["ztprobe.run"] == "ab12cd"
        assert pod["spec"]["restartPolicy"] == "Never"
        first, application = pod["spec"]["initContainers"][0], pod["spec"]["containers"][0]
        assert first["name"] == gate.GATE  # before sidecars, too: what holds is the first of all
        assert first["image"] == application["image"]
        assert first["securityContext"] == application["securityContext"]  # "restricted" admits it
        assert "restartPolicy" not in first
        held_back = [one["name"] for one in pod["spec"]["initContainers"][1:]]
        # What holds the application comes after its sidecar, which does not end.
        assert held_back == (["proxy", gate.INNER_GATE] if level >= 2 else [])
        hold = pod["spec"]["containers"][-1]
        assert hold["name"] == gate.HOLD  # beside the application: it keeps the pod's network
        assert (hold["image"], hold["securityContext"]) == (first["image"], first["securityContext"])
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)
    for number, pod in enumerate(pods[1:]):
        env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        assert env["JOB_COMPLETION_INDEX"] == str(number)
    selector = named(documents, "Service", "fl-server")["spec"]["selector"]
    assert [
        pod["metadata"]["name"] for pod in pods if selector.items() <= pod["metadata"]["labels"].items()
    ] == ["fl-server"]


def test_a_hold_is_told_by_what_it_was_started_with() -> None:
    (pod, *_) = (d for d in traced_pods(experiment_documents("ab12cd", options(0))) if d["kind"] == "Pod")
    hold = pod["spec"]["containers"][-1]
    told = {one["name"]: one["value"] for one in hold["env"]}
    for env, expected in ((told, True), ({}, False)):
        process = subprocess.Popen(["sleep", "60"], env=env)
        try:
            # A program that has just begun has no environment to be seen for a moment.
            until = time.monotonic() + 5
            while gate.is_hold(process.pid) is not expected and time.monotonic() < until:
                time.sleep(0.01)
            assert gate.is_hold(process.pid) is expected
        finally:
            process.kill()
            process.wait()
    assert gate.is_hold(process.pid) is False


def test_a_named_node_keeps_every_pod() -> None:
    pods = [d for d in traced_pods(experiment_documents("ab12cd", options(0)), "n1") if d["kind"] == "Pod"]
    for pod in pods:
        required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (term,) = required["nodeSelectorTerms"]
        assert term == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)


def listed(name: str = "fl-client-0", **status: Any) -> dict[str, Any]:
    containers = {
        "initContainers": [{"name": gate.GATE, "image": "x/fl:1"}],
        "containers": [{"name": "client"}],
    }
    return {"metadata": {"name": name, "namespace": "fl-1"}, "spec": containers, "status": status}


def at_gate(name: str) -> dict[str, Any]:
    running = {"name": gate.GATE, "state": {"running": {}}, "containerID": "containerd://12"}
    return listed(name, podIP="10.0.0.1", initContainerStatuses=[running])


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return listed(initContainerStatuses=[{"name": gate.GATE, "state": state}])


@pytest.mark.parametrize(
    ("pod", "said", "is_final"),
    [
        (waiting("ImagePullBackOff", "Back-off\npulling"), "the image x/fl:1 cannot be pulled", True),
        (waiting("ErrImagePull", "not found"), "(ErrImagePull): not found; make images builds it", False),
        (
            waiting("CreateContainerConfigError", "no secret"),
            "does not start (CreateContainerConfigError)",
            True,
        ),
        (listed(phase="Failed", reason="Evicted", message="disk"), "is not run: Evicted: disk", True),
        (
            listed(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]),
            "fl-1/fl-client-0 cannot be scheduled: 0/3 nodes",
            False,
        ),
    ],
)
def test_what_hinders_a_pod_is_one_line(pod: dict[str, Any], said: str, is_final: bool) -> None:
    found = hindrance(pod)
    assert found is not None
    assert said in found.words
    assert "\n" not in found.words
    assert found.is_final is is_final
    assert hindrance(waiting("PodInitializing")) is None
    assert hindrance(at_gate("x")) is None


def test_who_stands_at_a_gate_and_who_has_ended() -> None:
    assert is_at_gate(at_gate("x"))
    assert not is_at_gate(waiting("PodInitializing"))
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    pod = listed(
        initContainerStatuses=[{"name": gate.GATE, "state": {"terminated": {"exitCode": 0}}}],
        containerStatuses=[{"name": "client", "state": {"terminated": ended}}],
    )
    assert exits([pod]) == {"fl-client-0/client": -9}
    assert short_of_memory(pod, "client")


def with_sidecar(proxy: dict[str, Any], client: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A pod whose sidecar and application are in these states."""
    pod = listed(
        initContainerStatuses=[
            {"name": gate.GATE, "state": {"terminated": {"exitCode": 0}}},
            {"name": "proxy", "state": proxy, **more},
            {"name": gate.INNER_GATE, "state": {"terminated": {"exitCode": 0}}},
        ],
        containerStatuses=[{"name": "client", "state": client}],
    )
    pod["spec"]["initContainers"] += [{"name": "proxy", "restartPolicy": "Always"}, {"name": gate.INNER_GATE}]
    return pod


def test_a_sidecar_that_ends_before_its_application_has_ended() -> None:
    running, ended = {"running": {}}, {"terminated": {"exitCode": 137}}
    assert exits([with_sidecar(running, running)]) == {}
    assert exits([with_sidecar(ended, running)]) == {"fl-client-0/proxy": -9}
    # Started again by kubelet:
    assert exits([with_sidecar(running, running, lastState=ended)]) == {"fl-client-0/proxy": -9}
    over = {"terminated": {"exitCode": 0}}
    assert exits([with_sidecar(ended, over)]) == {"fl-client-0/client": 0}  # kubelet has ended it


class Answers:
    """An API that says one thing after another."""

    def __init__(self, *looks: list[dict[str, Any]] | Exception) -> None:
        self.looks = list(looks)

    def objects(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        if kind == "events":
            about = {"name": "fl-client-0"}
            event = {
                "metadata": {"name": "e"},
                "type": "Warning",
                "reason": "FailedMount",
                "message": "no disk",
            }
            return [{**event, "involvedObject": about}]
        assert (namespace, selector) == ("fl-1", "ztprobe.run=1")
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, Exception):
            raise found
        return found


def pods_of(*looks: list[dict[str, Any]] | Exception) -> RunPods:
    return RunPods(Answers(*looks), "fl-1", "1", QuietProgress())  # type: ignore[arg-type]


def test_pods_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_pods, "_POLL_S", 0.001)
    pods_of([], [waiting("ErrImagePull")], [at_gate("fl-client-0")]).await_gates(["fl-client-0"])
    monkeypatch.setattr(run_pods, "_HINDERED_S", 0.01)
    with pytest.raises(WorkloadError, match="cannot be pulled"):
        pods_of([waiting("ErrImagePull")]).await_gates(["fl-client-0"])
    monkeypatch.setattr(run_pods, "_GATES_S", 0.01)
    with pytest.raises(WorkloadError, match="is not there after 0 s: FailedMount: no disk"):
        pods_of([waiting("PodInitializing")]).await_gates(["fl-client-0"])


def test_what_a_pod_waits_for_is_said_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_pods, "_POLL_S", 0.001)
    monkeypatch.setattr(run_pods, "_EVENTS_S", 0.01)
    said = io.StringIO()
    looks = [*[[waiting("PodInitializing")]] * 30, [at_gate("fl-client-0")]]
    pods = RunPods(Answers(*looks), "fl-1", "1", PlainProgress(said))  # type: ignore[arg-type]
    pods.await_gates(["fl-client-0"])
    assert said.getvalue().count("0 of 1 pods are there, fl-client-0 is next: FailedMount: no disk") == 1


def test_an_api_that_is_away_ends_a_run_only_after_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_pods, "_POLL_S", 0.001)
    away = PreflightError("the Kubernetes API does not answer")
    said = io.StringIO()
    pods = RunPods(Answers([at_gate("x")], away), "fl-1", "1", PlainProgress(said))  # type: ignore[arg-type]
    pods.read()
    until_s = time.monotonic() + 20
    while "asked again" not in said.getvalue():
        assert time.monotonic() < until_s
        pods.look()
        time.sleep(0.01)
    for _ in range(20):
        pods.look()
        time.sleep(0.002)
    assert said.getvalue().count("asked again") == 1
    assert list(pods.objects) == ["x"]  # what it said last holds
    monkeypatch.setattr(run_pods, "_LONGEST_AWAY_S", 0.0)
    with pytest.raises(PreflightError, match="has not answered for"):
        pods.look()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands at a gate below a root of its own."""
    (tmp_path / "run" / gate.GATE).mkdir(parents=True)
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_gate_is_opened_and_says_how_long_it_held(
    held: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = gate._open_at
    proc = tmp_path / "proc"
    (proc / str(held.pid)).mkdir(parents=True)
    (proc / str(held.pid) / "root").symlink_to(tmp_path)
    monkeypatch.setattr(gate, "_open_at", lambda pid, file: opened(pid, file, proc))
    held_s = gate.open_gate([held.pid])
    assert held_s is not None
    assert 0 <= held_s < 60
    there = tmp_path / "run" / gate.GATE
    assert [path.name for path in there.iterdir()] == ["open"]
    assert gate.open_gate([held.pid], gate.INNER_GATE) is not None
    assert sorted(path.name for path in there.iterdir()) == ["open", "open-inner"]
    assert gate.open_gate([]) is None


def test_a_gate_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "run").mkdir(parents=True)
    (tmp_path / "root" / "run" / gate.GATE).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "root").symlink_to(tmp_path / "root")
    with pytest.raises(OSError):  # noqa: PT011  whichever of ELOOP and ENOTDIR
        gate._open_at(7, "open", tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_log_is_kept_whole_across_its_rotation(tmp_path: Path) -> None:
    logs, kept = tmp_path / "client", tmp_path / "fl-client-0.client.log"
    log = KeptLog(logs, kept)
    log.look()
    logs.mkdir()
    at = "2026-01-02T03:04:05.678901234Z"
    (logs / "0.log").write_text(f'{at} stdout F {{"event": "a"}}\n{at} stderr F oh\n{at} stdout P {{"ev')
    log.look()
    with (logs / "0.log").open("a") as file:
        file.write(f'ent":\n{at} stdout F "b"}}\n')
    os.rename(logs / "0.log", logs / "0.log.20260102-030405")
    (logs / "0.log").write_text(f"{at} stdout F last\n")
    log.look()
    log.close()
    assert kept.read_text() == '{"event": "a"}\n{"event":"b"}\nlast\n'
    assert kept.with_suffix(".err").read_text() == "oh\n"


def place(proc: Path, pid: int, uid: str, container: str) -> None:
    (proc / str(pid)).mkdir(exist_ok=True, parents=True)
    (proc / str(pid) / "cgroup").write_text(f"0::/kubepods/pod{uid}/{container}\n")


def test_a_process_is_followed_into_its_container_and_forgotten_when_it_ends(tmp_path: Path) -> None:
    uid, container = "5ba2b8a8-21c2-4c52-9fd0-4d1e3c0c4b11", "ab" * 32
    processes = PodProcesses(tmp_path)
    place(tmp_path, 7, uid, "runc")
    assert processes.look({uid: "fl-server"}) == []
    place(tmp_path, 7, uid, container)
    assert processes.look({uid: "fl-server"}) == [(7, "fl-server", container)]
    assert processes.look({}) == []
    shutil.rmtree(tmp_path / "7")
    assert processes.look({uid: "fl-server"}) == []


def test_an_application_is_known_before_the_api_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, sandbox, held, application = "5ba2b8a8-21c2-4c52-9fd0-4d1e3c0c4b11", "0a" * 32, "0b" * 32, "0c" * 32
    monkeypatch.setattr(pod_access_here, "PodProcesses", lambda: PodProcesses(tmp_path))
    gate_status = {"name": gate.GATE, "containerID": f"containerd://{held}", "state": {"running": {}}}
    pod = listed("fl-server", initContainerStatuses=[gate_status])
    pod["metadata"]["uid"] = uid
    told = pods_of([pod])
    told.read()
    here = Pod(
        name="fl-server",
        namespace="fl-1",
        address="10.0.0.1",
        netns=tmp_path,
        netns_inode=1,
        interface="eth0",
        host_interface="",
        node_netns=tmp_path,
        uid=uid,
    )
    nodes = OneNode(lambda: None)  # type: ignore[arg-type,return-value]
    found = source.RunSource(lambda: None, nodes, lambda: told, tmp_path)  # type: ignore[arg-type,return-value]
    place(tmp_path, 1, uid, sandbox)
    place(tmp_path, 2, uid, held)
    found.at_gates({"fl-server": "server"})
    assert found.processes([here]) == {2: ("fl-server", gate.GATE)}
    place(tmp_path, 3, uid, application)
    assert found.processes([here]) == {2: ("fl-server", gate.GATE), 3: ("fl-server", "server")}


def test_what_is_not_to_be_had_on_a_cluster_is_refused_beforehand(tmp_path: Path) -> None:
    there = ClusterPlace(namespace="a", context="b")
    for wanted, said in (
        (replace(options(1), later_level=3), "--switch-level: "),
        (options(0, edges=2), "--fl-edges: "),
    ):
        with pytest.raises(UsageError, match=said):
            ClusterRuntime(wanted, there, "1", tmp_path, QuietProgress(), offloads=True)
    assert there.undeploy("ab12cd") == "ztprobe undeploy ab12cd -n a --context b"


def test_a_run_whose_owner_was_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztprobe.paths.STATE_DIR", tmp_path / "state")
    journal = Journal("ab12cd")
    journal.elsewhere("may still be on its cluster")
    assert clean_leftovers() == []  # its owner lives
    assert clean_leftovers(force=True) == ["ab12cd: may still be on its cluster"]
