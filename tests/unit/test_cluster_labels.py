"""Labels of a cluster's pods as one of its nodes sees them: the API's list against this node's processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.test_targets import add_process
from ztprobe.errors import PreflightError, UsageError
from ztprobe.kubernetes import repeated
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.labelled import ClusterLabelledPods
from ztprobe.pods.participants import Participants
from ztprobe.pods.process_table import ProcessTable
from ztprobe.pods.selectors import parse_selector
from ztprobe.pods.targets import parse_target

SERVER, CLIENT = "5ba2b8a8-21c2-4c52-9fd0-4d1e3c0c4b11", "5ba2b8a8-21c2-4c52-9fd0-4d1e3c0c4b12"


class Answers:
    """An API that says what it is told."""

    def __init__(self) -> None:
        self.pods = [
            pod("fl-server-x", SERVER, "node-a", "10.0.0.1", app="fl-server"),
            pod("fl-client-0", CLIENT, "node-a", "10.0.0.2", app="fl-client"),
            pod("fl-client-1", "5ba2b8a8-21c2-4c52-9fd0-4d1e3c0c4b13", "node-b", "10.0.9.3", app="fl-client"),
        ]
        self.is_away = False

    def objects(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        assert (kind, namespace) == ("pods", "fl")
        if self.is_away:
            raise PreflightError("the Kubernetes API at https://x does not answer")
        wanted = parse_selector(selector)
        return [one for one in self.pods if wanted.matches(one["metadata"]["labels"])]

    def everywhere(self, kind: str, group: str, version: str) -> list[dict[str, Any]] | None:
        if self.is_away:
            raise PreflightError("the Kubernetes API at https://x does not answer")
        return self.pods if kind == "pods" else []


def pod(name: str, uid: str, node: str, address: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": uid, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "server"}, {"name": "sidecar"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


def in_pod(proc: Path, pid: int, command: str, uid: str, **more: Any) -> None:
    add_process(proc, pid, command, **more)
    group = (
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid.replace('-', '_')}.slice"
    )
    (proc / str(pid) / "cgroup").write_text(f"{group}/cri-containerd-{'a' * 64}.scope\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    in_pod(tmp_path, 10, "pause", SERVER)
    in_pod(tmp_path, 11, "python server.py", SERVER)
    in_pod(tmp_path, 20, "python client.py", CLIENT)
    in_pod(tmp_path, 21, "haproxy", CLIENT)
    add_process(tmp_path, 30, "somebody else")
    return tmp_path


@pytest.fixture
def api() -> Answers:
    return Answers()


def seen(api: Answers, *, node: str | None = None, logs: Path = Path("/x")) -> ClusterLabelledPods:
    return ClusterLabelledPods(cast(Api, api), "fl", node=node, logs=logs)


def participants(proc: Path, pods: ClusterLabelledPods, server: str, *clients: str) -> Participants:
    targets = [parse_target(server, "server"), *(parse_target(one, "client") for one in clients)]
    return Participants(targets, ProcessTable(proc), pods)


def pids(found: Participants) -> dict[str, set[int]]:
    return {one.name: {member.pid for member in one.running} for one in found.all}


def test_pods_here_are_their_processes_and_pods_elsewhere_their_addresses(proc: Path, api: Answers) -> None:
    found = participants(proc, seen(api), "app=fl-server", "app=fl-client")
    found.first_look()
    assert pids(found) == {"fl-server-x": {10, 11}, "fl-client-0": {20, 21}, "fl-client-1": set()}
    (far,) = [one for one in found.all if not one.is_here]
    assert (far.name, far.address, far.role) == ("fl-client-1", "10.0.9.3", "client")
    assert found.is_sidecar(21)
    assert found.look() == []


def test_who_is_still_in_the_nodes_network_is_not_in_its_pod_yet(proc: Path, api: Answers) -> None:
    """A container's first process is in the pod's cgroup before it enters the pod's network."""
    of_host = "5ba2b8a8-21c2-4c52-9fd0-4d1e3c0c4b14"
    api.pods.append(pod("fl-client-2", of_host, "node-a", "10.0.0.9", app="fl-client"))
    api.pods[-1]["spec"]["hostNetwork"] = True
    for pid, uid in ((22, CLIENT), (40, of_host)):
        in_pod(proc, pid, "runc init", uid)
        (proc / str(pid) / "ns/net").unlink()
        (proc / str(pid) / "ns/net").symlink_to("/proc/self/ns/net")
    named = participants(proc, seen(api), "app=fl-server", "app=fl-client")
    peers = participants(proc, seen(api), "app=fl-server")
    for found in (named, peers):
        found.first_look()
    peers.add_peer(20)
    peers.add_peer(40)
    for found in (named, peers):
        found.look()
        assert pids(found)["fl-client-0"] == {20, 21}
        assert pids(found)["fl-client-2"] == {40}
    (proc / "22/ns/net").unlink()
    (proc / "22/ns/net").touch()
    for found in (named, peers):
        found.look()
        assert pids(found)["fl-client-0"] == {20, 21, 22}


def test_a_peer_is_its_whole_pod_by_its_name(proc: Path, api: Answers) -> None:
    found = participants(proc, seen(api), "app=fl-server")
    found.first_look()
    found.add_peer(21)
    there = found.add_elsewhere("10.0.9.3")
    assert there is not None and there.name == "fl-client-1"
    found.look()
    assert pids(found) == {"fl-server-x": {10, 11}, "fl-client-0": {20, 21}, "fl-client-1": set()}
    in_pod(proc, 22, "python task.py", CLIENT)
    found.look()
    assert pids(found)["fl-client-0"] == {20, 21, 22}


def test_a_server_on_another_node_is_said_to_be_there(proc: Path, api: Answers) -> None:
    api.pods[0]["spec"]["nodeName"] = "node-c"
    for pid in (10, 11):
        (proc / str(pid) / "cgroup").write_text("0::/\n")
    with pytest.raises(UsageError, match="fl/fl-server-x is on node node-c, and this is node node-a"):
        participants(proc, seen(api, node="node-a"), "app=fl-server").first_look()


def test_a_server_that_has_not_started_and_labels_of_nobody_are_told_apart(proc: Path, api: Answers) -> None:
    with pytest.raises(
        UsageError, match="--server app=x: matches no pod in namespace fl; running: fl: app=fl-"
    ):
        participants(proc, seen(api), "app=x").first_look()
    for pid in (10, 11):
        (proc / str(pid) / "cgroup").write_text("0::/\n")
    with pytest.raises(UsageError, match="fl/fl-server-x is not running yet, or none of its processes"):
        participants(proc, seen(api, node="node-a"), "app=fl-server").first_look()


def test_several_pods_are_no_server(proc: Path, api: Answers) -> None:
    api.pods[1]["metadata"]["labels"] = {"app": "fl-server"}
    with pytest.raises(
        UsageError, match=r"matches 2 pods \(fl-client-0, fl-server-x\), expected the server's"
    ):
        participants(proc, seen(api), "app=fl-server").first_look()


def test_an_api_that_goes_away_changes_nothing_and_is_said_once(
    proc: Path, api: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated, "_ASK_AGAIN_S", 0.01)
    pods = seen(api)
    found = participants(proc, pods, "app=fl-server", "app=fl-client")
    found.first_look()
    before = pids(found)
    api.is_away = True
    assert _notes(found, pods, 1) == [
        "the Kubernetes API at https://x does not answer; the pods known so far are watched, "
        "and it is asked again"
    ]
    assert pids(found) == before
    api.is_away = False
    api.pods[2]["status"]["phase"] = "Succeeded"
    new = "5ba2b8a8-21c2-4c52-9fd0-4d1e3c0c4b14"
    api.pods.append(pod("fl-client-2", new, "node-a", "10.0.0.4", app="fl-client"))
    in_pod(proc, 40, "python client.py", new)
    assert _notes(found, pods, 1) == ["the Kubernetes API answers again"]
    give_up = time.monotonic() + 10
    while "fl-client-2" not in pids(found) and time.monotonic() < give_up:
        found.look()
    assert pids(found)["fl-client-2"] == {40}


def _notes(found: Participants, pods: ClusterLabelledPods, count: int) -> list[str]:
    notes: list[str] = []
    give_up = time.monotonic() + 10
    while len(notes) < count and time.monotonic() < give_up:
        found.look()
        notes += pods.fresh_notes()
        time.sleep(0.01)
    for _ in range(20):
        found.look()
        notes += pods.fresh_notes()
        time.sleep(0.005)
    return notes


def test_objects_in_force_are_kept_with_their_changes(api: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "_ASK_AGAIN_S", 0.01)
    pods = seen(api)
    ((since_ns, first),) = pods.in_force()
    assert since_ns == 0
    assert [one["kind"] for one in first] == ["Pod"] * 3
    assert first[0]["status"] == {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}
    api.pods = api.pods[:2]
    give_up = time.monotonic() + 10
    while len(pods.in_force()) < 2 and time.monotonic() < give_up:
        pods.pod_at("10.0.0.1")
    (_, _), (later_ns, later) = pods.in_force()
    assert 0 < later_ns <= time.monotonic_ns()
    assert len(later) == 2


def test_an_api_that_refuses_at_first_is_one_line(proc: Path, api: Answers) -> None:
    api.is_away = True
    with pytest.raises(PreflightError, match="does not answer"):
        participants(proc, seen(api), "app=fl-server").first_look()


def test_the_servers_log_is_that_of_its_latest_start(tmp_path: Path, api: Answers) -> None:
    target = parse_target("app=fl-server", "server")
    assert seen(api, logs=tmp_path).log_of(target) is None
    directory = tmp_path / f"fl_fl-server-x_{SERVER}" / "server"
    directory.mkdir(parents=True)
    for name in ("0.log", "2.log", "10.log", "10.log.20260101-000000"):
        (directory / name).touch()
    assert seen(api, logs=tmp_path).log_of(target) == directory / "10.log"
    assert seen(api, logs=tmp_path).log_of(parse_target("app=fl-client", "client")) is None  # several
