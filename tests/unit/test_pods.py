"""From a process to its pod, in every layout of cgroups, and from a state directory to pods."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ztprobe.errors import UsageError
from ztprobe.pods.cgroup import container_id, find_namespaces, find_processes, lasting, pod_uid
from ztprobe.pods.local import LocalPods, local_pods
from ztprobe.pods.model import Pod
from ztprobe.pods.selection import choose
from ztprobe.pods.selectors import parse_selector

UID = "2f1b3c4d-0a9b-4c8d-9e7f-112233445566"
SCOPE = "cri-containerd-6d1f.scope"
UNDERSCORED = UID.replace("-", "_")


@pytest.mark.parametrize(
    ("text", "uid"),
    [
        # cgroup v2, systemd driver; burstable, best effort, guaranteed
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/{SCOPE}\n",
            UID,
        ),
        (
            f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/{SCOPE}",
            UID,
        ),
        (f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/{SCOPE}\n", UID),
        # cgroup v2, cgroupfs driver
        (f"0::/kubepods/burstable/pod{UID}/6d1f\n", UID),
        (f"0::/kubepods/pod{UID}/6d1f\n", UID),
        # seen from the host, kubelet inside a container (kind)
        (
            f"0::/docker/abc/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERSCORED}.slice/{SCOPE}",
            UID,
        ),
        # cgroup v1: a path for every controller, here with v2 mounted beside it
        (f"12:cpu,cpuacct:/kubepods/besteffort/pod{UID}/6d1f\n11:pids:/kubepods/pod{UID}/6d1f\n0::/\n", UID),
        (f"1:name=systemd:/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/{SCOPE}\n0::/system.slice\n", UID),
        # a static pod
        (
            "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/6d1f\n",
            "0123456789abcdef0123456789abcdef",
        ),
        # with nothing below (the sandbox's own cgroup)
        (f"0::/kubepods/pod{UID}\n", UID),
        # read from a container with a cgroup namespace of its own, in a pod of the same and of another class
        (f"0::/../../kubepods-burstable-pod{UNDERSCORED}.slice/{SCOPE}\n", UID),
        (f"0::/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/{SCOPE}", UID),
        (f"0::/../../pod{UID}/6d1f\n", UID),
        (f"0::/../../../besteffort/pod{UID}/6d1f\n", UID),
        ("0::/../../../../system.slice/kubelet.service\n", None),
        ("0::/user.slice/user-1000.slice/session-1.scope\n", None),
        ("0::/system.slice/kubelet.service\n", None),
        ("0::/kubepods.slice\n", None),
        (f"0::/podman/pod{UID}\n", None),
        # kubelet inside a container, with either driver
        (f"0::/system.slice/docker-6d1f.scope/kubelet/kubepods/burstable/pod{UID}/6d1f\n", UID),
        # what only looks like a pod's: a user's own cgroups, other names, a pod inside a pod's container
        (f"0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/x\n", None),
        (
            f"0::/user.slice/user-1000.slice/user@1000.service/kubepods.slice/kubepods-pod{UNDERSCORED}.slice",
            None,
        ),
        (f"0::/kubepods-mine/a/b/pod{UID}\n", None),
        (f"0::/kubepods/burstable/mine/pod{UID}/x\n", None),
        (f"0::/mykubepods/pod{UID}/x\n", None),
        (f"0::/kubepods.slice/mine.slice/kubepods-pod{UNDERSCORED}.slice\n", None),
        (f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-burstable-pod{UNDERSCORED}.slice\n", None),
        (f"0::/../../mine/pod{UID}/x\n", None),
        (f"0::/kubepods/pod{UID}/6d1f/kubepods/pod{UID.replace('2f', '3f')}/x\n", UID),
        (f"2:cpu:/kubepods/pod{UID}/x\n3:pids:/kubepods/pod{UID.replace('2f', '3f')}/x\n", None),
        ("", None),
        ("nonsense", None),
    ],
)
def test_a_pods_uid_is_in_its_cgroup(text: str, uid: str | None) -> None:
    assert pod_uid(text) == uid


def test_namespaces_are_found_through_processes(tmp_path: Path) -> None:
    def process(pid: int, cgroup: str, namespace: str) -> None:
        (tmp_path / str(pid) / "ns").mkdir(parents=True)
        (tmp_path / str(pid) / "cgroup").write_text(cgroup)
        (tmp_path / str(pid) / "ns" / "net").symlink_to(namespace)

    other = UID.replace("2f", "3f")
    process(1, "0::/init.scope\n", "net:[1]")
    process(60, "0::/system.slice/sshd.service\n", "net:[1]")
    process(65, "0::/user.slice\n", "net:[7]")  # somebody who has a look at the pod
    process(70, f"0::/kubepods/pod{UID}/pause\n", "net:[7]")
    process(71, f"0::/kubepods/pod{UID}/app\n", "net:[7]")
    process(80, f"0::/kubepods/pod{other}/hostnetwork\n", "net:[1]")
    process(90, "0::/docker/kind\n", "net:[9]")
    (tmp_path / "self").mkdir()
    found = find_namespaces(tmp_path)
    assert found.pods == {UID: tmp_path / "70" / "ns" / "net"}
    assert found.others == (tmp_path / "1" / "ns" / "net", tmp_path / "90" / "ns" / "net")


def test_a_namespace_that_is_bound_nowhere_keeps_its_path() -> None:
    assert lasting(Path("/proc/self/ns/uts")) == Path("/proc/self/ns/uts")
    assert lasting(Path("/proc/0/ns/net")) == Path("/proc/0/ns/net")


def journal(state: Path, run: str, name: str, netns: Path, **labels: str) -> None:
    (state / run).mkdir(parents=True)
    pod = {
        "name": name, "namespace": "fl", "labels": labels, "address": "10.0.0.1", "netns": str(netns),
        "netns_inode": os.stat(netns).st_ino, "interface": "eth0", "host_interface": "v",
        "node_netns": str(netns),
    }  # fmt: skip
    (state / run / "journal.json").write_text(json.dumps({"owner": {}, "pods": [pod]}))


def test_local_pods_are_those_whose_namespace_is_there(tmp_path: Path) -> None:
    alive, gone = tmp_path / "alive", tmp_path / "gone"
    alive.touch()
    gone.touch()
    journal(tmp_path / "state", "aaa", "fl-client-0", alive, app="fl-client")
    journal(tmp_path / "state", "bbb", "fl-client-0", gone, app="fl-client")
    gone.unlink()
    (tmp_path / "state" / "ccc").mkdir()
    (tmp_path / "state" / "ccc" / "journal.json").write_text("{half")
    (pod,) = local_pods(tmp_path / "state")
    assert (pod.run, str(pod), pod.runtime, pod.is_here) == ("aaa", "fl/fl-client-0", "local", True)
    assert Pod.from_dict(json.loads(json.dumps(pod.as_dict()))) == pod


def test_choosing_nothing_says_what_there_is(tmp_path: Path) -> None:
    place = tmp_path / "ns"
    place.touch()
    journal(tmp_path / "state", "aaa", "fl-client-0", place, app="fl-client")
    pods = local_pods(tmp_path / "state")
    assert choose(pods, parse_selector("app=fl-client"), "fl") == pods
    with pytest.raises(UsageError, match=r"matches no pod in namespace fl; running: fl: app=fl-client"):
        choose(pods, parse_selector("app=x"), "fl")
    with pytest.raises(UsageError, match="no pods are running on this machine"):
        choose([], parse_selector(""), "fl")


CONTAINER = "6d1f" * 16


@pytest.mark.parametrize(
    "text",
    [
        f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{CONTAINER}.scope\n",
        f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{CONTAINER}.scope/container\n",
        f"0::/kubepods/pod{UID}/{CONTAINER}\n",
        f"4:memory:/kubepods/pod{UID}/{CONTAINER}\n0::/\n",
    ],
)
def test_a_container_s_id_is_in_its_cgroup(text: str) -> None:
    assert container_id(text) == CONTAINER


def test_a_pod_s_own_cgroup_names_no_container() -> None:
    assert container_id(f"0::/kubepods/pod{UID}\n") is None


def test_processes_are_found_in_the_containers_of_pods(tmp_path: Path) -> None:
    for pid, cgroup in (
        (1, "/init.scope"),
        (70, f"/kubepods/pod{UID}/{CONTAINER}"),
        (71, f"/kubepods/pod{UID}/{CONTAINER}"),
        (72, f"/kubepods/pod{UID.replace('2f', '3f')}/{CONTAINER}"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::{cgroup}\n")
    assert list(find_processes({UID: "p"}, tmp_path)) == [(70, "p", CONTAINER), (71, "p", CONTAINER)]


def test_a_local_run_s_processes_and_logs_are_found_by_its_journal(tmp_path: Path) -> None:
    (alive := tmp_path / "alive").touch()
    journal(tmp_path / "state", "aaa", "fl-client-0", alive, app="fl-client")
    written = json.loads((tmp_path / "state/aaa/journal.json").read_text())
    written |= {"cgroups": [str(tmp_path / "cg"), str(tmp_path / "other")], "logs": ["/runs/x/logs"]}
    (tmp_path / "state/aaa/journal.json").write_text(json.dumps(written))
    for container, pids in (("client", "7\n9\n"), ("proxy", "8\n")):
        (tmp_path / "cg" / "fl-client-0" / container).mkdir(parents=True)
        (tmp_path / "cg" / "fl-client-0" / container / "cgroup.procs").write_text(pids)
    source = LocalPods(state_dir=tmp_path / "state")
    (pod,) = source.neighbours("fl")
    who = {7: ("fl-client-0", "client"), 8: ("fl-client-0", "proxy"), 9: ("fl-client-0", "client")}
    assert source.processes([pod]) == who
    assert source.log(pod, "client") == Path("/runs/x/logs/fl-client-0.client.log")
    gone = replace(pod, run="bbb")
    assert source.processes([gone]) == {}
    with pytest.raises(FileNotFoundError):
        source.log(gone, "client")
