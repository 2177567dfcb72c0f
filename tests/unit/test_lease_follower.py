"""A lease that is kept to its selector: what is written down when, and what becomes of whom."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_leases import a_lease
from ztprobe import paths
from ztprobe.agent import lease_follower, lease_keeper
from ztprobe.agent.coming_pods import ComingPod, LocalComing, identity
from ztprobe.agent.lease_calls import LEASE_CALLS, _request, _state_here
from ztprobe.agent.lease_follower import LeaseFollower
from ztprobe.cli.rendering.profile_since import pod_lines, since_dict
from ztprobe.errors import EnforcementError
from ztprobe.leases import records
from ztprobe.leases.following import Following, FollowState, PodSince
from ztprobe.leases.records import Lease, Point
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile

FOLLOW = Following(runtime="kubernetes", node="node-a")
SLOW = Profile(name="slow", rate_mbit=10)


class Coming:
    """Stands for the API and the node's processes."""

    def __init__(self) -> None:
        self.there: list[ComingPod] = []
        self.problem = ""
        self.refused: dict[str, str] = {}
        self.peers: tuple[Pod, ...] | None = None
        self.may_come = True
        self.unmeant: set[str] = set()
        self.completed: dict[str, Pod] = {}

    def look(self, under: Collection[str]) -> list[ComingPod]:
        return [one for one in self.there if identity(one.pod) not in under]

    def is_meant(self, pod: Pod) -> bool:
        return pod.uid not in self.unmeant

    def complete(self, pod: Pod) -> Pod:
        return self.completed.get(pod.uid, pod)

    def located(self, pod: Pod) -> Pod:
        return pod

    def close(self) -> None:
        pass


class Kernel:
    """Stands for what is put on pods: notes what the record on disk says at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put: list[tuple[str, ...]] = []
        self.written: list[list[str]] = []
        self.reverted: list[tuple[str, ...]] = []
        self.filters: list[frozenset[str]] = []
        self.refuses: set[str] = set()
        self.sent = iter([0] * 100)
        monkeypatch.setattr(lease_follower, "put_into_force", self.put_into_force)
        monkeypatch.setattr(lease_follower, "revert", self.revert)
        monkeypatch.setattr(lease_follower, "plan_points", self.plan_points)
        monkeypatch.setattr(lease_follower, "change_peers", self.change_peers)
        monkeypatch.setattr(lease_follower, "sent_packets", lambda *_: next(self.sent))

    def plan_points(self, pods: list[Pod], *_: Any, first: int, **__: Any) -> tuple[Point, ...]:
        (pod,) = pods
        return (
            Point(
                pod=str(pod), direction="egress", netns=pod.netns, netns_inode=pod.netns_inode,
                interface="eth0", ifb=f"n{first}",
            ),
        )  # fmt: skip

    def put_into_force(self, lease: Lease, step: Profile) -> list[Any]:
        names = tuple(map(str, lease.pods))
        (whole,) = records.all_leases()
        self.written.append([point.pod for point in whole.points])
        assert {point.pod for point in lease.points} == set(names)
        if self.refuses & set(names):
            raise EnforcementError("the kernel refused")
        self.put.append(names)
        return []

    def revert(self, lease: Lease) -> list[str]:
        self.reverted.append(tuple(map(str, lease.pods)))
        return []

    def change_peers(self, _: Point, addresses: frozenset[str]) -> None:
        self.filters.append(addresses)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lease:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    made = a_lease(SLOW)
    first = there(tmp_path, "first")
    made.pods, made.peers, made.rules, made.follow = (first,), None, (), FOLLOW
    made.points = (
        Point(
            pod=str(first), direction="egress", netns=first.netns, netns_inode=first.netns_inode,
            interface="eth0",
        ),
    )  # fmt: skip
    made.write()
    return made


def there(directory: Path, name: str, **changes: Any) -> Pod:
    """A pod whose namespace is a file."""
    netns = directory / f"netns-{name}-{len(list(directory.iterdir()))}"
    netns.touch()
    pod = Pod(
        name=name, namespace="fl", address="10.0.0.1", netns=netns, netns_inode=netns.stat().st_ino,
        interface="eth0", host_interface="veth", node_netns=Path("/n/node"), uid=f"uid-{netns.name}",
    )  # fmt: skip
    return dataclasses.replace(pod, **changes)


def names(lease: Lease) -> list[str]:
    """As written down."""
    return [pod.name for pod in records.load(lease.id).pods]


def test_a_pod_that_comes_is_written_down_before_it_is_touched(
    lease: Lease, kernel: Kernel, tmp_path: Path
) -> None:
    coming = Coming()
    follower = LeaseFollower(lease, FOLLOW, coming)
    follower.look()
    assert kernel.put == []
    pod = there(tmp_path, "second")
    coming.there = [ComingPod(pod=pod, without_s=time.monotonic() - 0.05)]
    follower.look()
    follower.look()
    assert kernel.put == [("fl/second",)]
    assert kernel.written == [["fl/first", "fl/second"]]
    assert names(lease) == ["first", "second"]
    held = lease.followed()
    assert held is not None
    first, second = held.pods
    assert (first.pod, first.came_later, first.sent_after) == ("fl/first", False, 0)
    assert (second.came_later, second.sent_before, second.sent_after) == (True, 0, 0)
    assert second.gap_ms is not None
    assert 50 <= second.gap_ms < 5000


def test_a_pod_that_is_replaced_is_let_go_and_its_successor_taken(
    lease: Lease, kernel: Kernel, tmp_path: Path
) -> None:
    coming = Coming()
    follower = LeaseFollower(lease, FOLLOW, coming)
    (old,) = lease.pods
    old.netns.unlink()
    coming.there = [ComingPod(pod=there(tmp_path, "first"), without_s=None)]
    follower.look()
    (new,) = records.load(lease.id).pods
    assert new.uid != old.uid
    (point,) = records.load(lease.id).points
    assert point.netns == new.netns
    assert kernel.reverted == [("fl/first",)]  # what the old one may have left on the node
    held = lease.followed()
    assert held is not None
    assert [(one.pod, one.came_later, one.gap_ms) for one in held.pods] == [("fl/first", True, None)]
    assert not follower.is_over


def test_a_lease_without_pods_is_over_once_none_can_come(
    lease: Lease, kernel: Kernel, tmp_path: Path
) -> None:
    coming = Coming()
    follower = LeaseFollower(lease, FOLLOW, coming)
    lease.pods[0].netns.unlink()
    follower.look()
    assert names(lease) == []
    assert not follower.is_over
    assert records.load(lease.id).runtime == "kubernetes"
    coming.may_come = False
    assert follower.is_over


def test_a_pod_with_other_labels_is_released(lease: Lease, kernel: Kernel) -> None:
    coming = Coming()
    follower = LeaseFollower(lease, FOLLOW, coming)
    coming.unmeant = {lease.pods[0].uid}
    follower.look()
    assert kernel.reverted == [("fl/first",)]
    assert names(lease) == []


def test_what_one_pod_refuses_hinders_no_other_and_is_tried_again(
    lease: Lease, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_follower, "_AGAIN_S", 0.0)
    coming = Coming()
    coming.refused = {"fl/hosted": "it uses its node's own network (hostNetwork)"}
    follower = LeaseFollower(lease, FOLLOW, coming)
    coming.there = [ComingPod(pod=there(tmp_path, name), without_s=None) for name in ("bad", "good")]
    kernel.refuses = {"fl/bad"}
    follower.look()
    assert names(lease) == ["first", "good"]
    assert ("fl/bad",) in kernel.reverted
    held = lease.followed()
    assert held is not None
    assert held.left_out == {**coming.refused, "fl/bad": "the kernel refused"}
    kernel.refuses = set()
    follower.look()
    assert names(lease) == ["first", "good", "bad"]
    held = lease.followed()
    assert held is not None
    assert held.left_out == coming.refused


def test_a_pod_under_another_lease_is_left_alone(lease: Lease, kernel: Kernel, tmp_path: Path) -> None:
    pod = there(tmp_path, "second")
    other = dataclasses.replace(lease, id=records.new_id(), pods=(pod,), points=())
    other.write()
    coming = Coming()
    follower = LeaseFollower(lease, FOLLOW, coming)
    coming.there = [ComingPod(pod=pod, without_s=None)]
    follower.look()
    assert kernel.put == []
    held = lease.followed()
    assert held is not None
    assert f"fl/second is under slow already (lease {other.id}" in held.left_out["fl/second"]


def test_what_is_known_later_is_written_down(lease: Lease, kernel: Kernel, tmp_path: Path) -> None:
    coming = Coming()
    follower = LeaseFollower(lease, FOLLOW, coming)
    early = there(tmp_path, "early", address="", host_interface="")
    coming.there = [ComingPod(pod=early, without_s=None)]
    coming.completed = {early.uid: dataclasses.replace(early, address="10.0.0.5", host_interface="v")}
    follower.look()
    follower._completed_s = 0.0
    follower.look()
    assert [(pod.address, pod.host_interface) for pod in records.load(lease.id).pods][1] == ("10.0.0.5", "v")
    assert kernel.put == [("fl/early",)]


def test_the_veth_s_other_end_is_waited_for_where_it_is_needed(
    lease: Lease, kernel: Kernel, tmp_path: Path
) -> None:
    lease.direction = "ingress"
    coming = Coming()
    follower = LeaseFollower(lease, FOLLOW, coming)
    early = there(tmp_path, "early", host_interface="")
    now_s = time.monotonic()
    coming.there = [ComingPod(pod=early, without_s=now_s)]
    follower.look()
    assert kernel.put == []
    coming.there = [ComingPod(pod=early, without_s=now_s - 2)]
    follower.look()
    assert kernel.put == [("fl/early",)]


def test_peers_change_where_the_pods_stay(lease: Lease, kernel: Kernel, tmp_path: Path) -> None:
    server = there(tmp_path, "server", address="10.0.0.8")
    lease.to, lease.peers = "app=s", (server,)
    coming = Coming()
    follower = LeaseFollower(lease, FOLLOW, coming)
    follower.look()
    coming.peers = (dataclasses.replace(server, netns_inode=0),)
    follower.look()
    assert kernel.filters == []
    assert lease.peers == (server,)
    coming.peers = (server, there(tmp_path, "another", address="10.0.0.9"))
    follower.look()
    follower.look()
    assert kernel.filters == [frozenset({"10.0.0.8", "10.0.0.9"})]
    assert records.load(lease.id).peer_addresses == ("10.0.0.8", "10.0.0.9")


def test_the_local_runtime_s_pods_come_with_their_run(
    lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = there(tmp_path, "p", labels={"app": "x"}, run="r", uid="")
    other = there(tmp_path, "q", labels={"app": "other"}, run="r", uid="")
    elsewhere = there(tmp_path, "p", labels={"app": "x"}, run="another", uid="")
    found = [pod, other]
    coming = LocalComing(lease, ["r"], lambda: [*found, elsewhere])
    assert not coming.may_come
    journal = paths.STATE_DIR / "r" / "journal.json"
    journal.parent.mkdir()
    journal.write_text("{}")
    assert coming.may_come
    assert [(one.pod, one.without_s) for one in coming.look(())] == [(pod, None)]
    assert coming.look({identity(pod)}) == []
    later = there(tmp_path, "later", labels={"app": "x"}, run="r", uid="")
    found.append(later)
    os.utime(journal, ns=(1, 1))
    (one,) = coming.look({identity(pod)})
    assert one.pod == later
    assert one.without_s is not None


def test_it_is_carried_as_json(lease: Lease) -> None:
    since = PodSince(
        pod="fl/p", since_ns=records.now_ns(), came_later=True, sent_before=0, sent_after=2, gap_ms=1.5
    )
    lease.write_following(FollowState(pods=(since,), left_out={"fl/q": "why"}, problem="away"))
    loaded = records.load(lease.id)
    assert loaded.follow == FOLLOW

    class There:
        def leases(self) -> list[Any]:
            return [state_of(loaded)]

    (said,) = LEASE_CALLS["leases"](There(), {})  # type: ignore[arg-type]
    told = _state_here(said | {"now_ns": records.now_ns() + 10**12})
    assert told.followed is not None
    assert told.followed.pods[0].since_ns == pytest.approx(since.since_ns - 10**12, abs=1e9)
    assert told.lease.follow == FOLLOW
    asked = {
        "profile": dataclasses.asdict(SLOW), "pods": [], "peers": None, "lasts_s": 60,
        "follow": dataclasses.asdict(FOLLOW),
    }  # fmt: skip
    assert _request(asked).follow == FOLLOW
    del asked["follow"]
    assert _request(asked).follow is None


def state_of(lease: Lease) -> Any:
    from ztprobe.agent.interface import LeaseState

    return LeaseState(lease=lease, counted={"lapsed": []}, step=None, followed=lease.followed())


def test_status_says_since_when_and_what_was_sent(lease: Lease) -> None:
    now_ns = records.now_ns()
    common = {"since_ns": now_ns - 5 * 10**9, "came_later": True, "gap_ms": 12.4}
    pods = (
        PodSince(pod="fl/a", since_ns=now_ns, came_later=False, sent_before=None, sent_after=1, gap_ms=None),
        PodSince(pod="fl/b", sent_before=0, sent_after=0, **common),  # type: ignore[arg-type]
        PodSince(pod="fl/c", sent_before=0, sent_after=3, **common),  # type: ignore[arg-type]
        PodSince(pod="fl/d", sent_before=4, sent_after=4, **{**common, "gap_ms": None}),  # type: ignore[arg-type]
    )
    lease.write_following(FollowState(pods=pods, left_out={"fl/x": "no"}, problem="the API is away"))
    state = state_of(lease)
    name = f"lease {lease.id}"
    assert pod_lines(state) == [
        f"{name}: fl/a since 0s, from the lease's beginning (1 packet sent until then)",
        f"{name}: fl/b since 5s, before its first packet, at most 12 ms after it had begun",
        f"{name}: fl/c since 5s, 0 to 3 packets sent before, at most 12 ms after it had begun",
        f"{name}: fl/d since 5s, 4 packets sent before",
        f"{name}: fl/x is not under it: no",
        f"{name}: holds for the pods known so far, and it is asked again for others: the API is away",
    ]
    said = since_dict(state)
    assert said["follows"] is True
    assert [(one["pod"], one["sent_after"], one["gap_ms"]) for one in said["pods_since"]][1] == (
        "fl/b",
        0,
        12.4,
    )
    assert (said["left_out"], said["follow_problem"]) == ({"fl/x": "no"}, "the API is away")


def test_the_keeper_finds_the_cluster_from_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", f"here.yaml{os.pathsep}/there.yaml")
    said = lease_keeper._environment()["KUBECONFIG"]
    assert said == f"{tmp_path}/here.yaml{os.pathsep}/there.yaml"


def test_a_pod_that_was_taken_meanwhile_is_refused_before_anything_is_touched(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = dataclasses.replace(lease, id=records.new_id(), points=())
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(EnforcementError, match="fl/first is under slow already"):
        lease_keeper.keep(late)
    assert [one.id for one in records.all_leases()] == [lease.id]
