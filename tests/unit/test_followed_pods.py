"""What an API says of the pods that a lease follows: those of the node, early, and still when it is away."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.unit.test_pod_source import pod
from ztprobe.errors import PreflightError, ZtprobeError
from ztprobe.kubernetes.followed_pods import FollowedPods
from ztprobe.pods.model import NOWHERE, Pod


class Cluster:
    """Stands for a cluster's API."""

    def __init__(self) -> None:
        self.lists: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.away: ZtprobeError | None = None
        self.connected = 0
        self.asked: list[tuple[str, str]] = []
        self.answered = threading.Event()

    def connect(self) -> Cluster:
        self.connected += 1
        return self

    def objects(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        assert namespace == "fl"
        self.asked.append((kind, selector))
        self.answered.set()
        if self.away is not None:
            raise self.away
        return self.lists.get((kind, selector), [])


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def followed(cluster: Cluster, *, to: str | None = None, services: tuple[Pod, ...] = ()) -> FollowedPods:
    return FollowedPods(
        cluster.connect,  # type: ignore[arg-type]
        "fl", "app=c", node="node-a", to=to, services=services,
    )  # fmt: skip


def test_pods_of_the_node_are_told_before_they_have_an_address(cluster: Cluster) -> None:
    bound = pod("a", node="node-a", phase="Pending", status_podIP="", status_podIPs=[])
    cluster.lists["pods", "app=c"] = [
        bound,
        pod("b"),
        pod("waits", node=""),
        pod("done", node="node-a", phase="Succeeded"),
        pod("hosted", node="node-a", spec_hostNetwork=True),
    ]
    pods = followed(cluster)
    assert pods.said is None
    pods.look()
    assert pods.said is not None
    assert list(pods.said.pods) == ["uid-a"]
    assert (pods.said.pods["uid-a"].address, pods.said.pods["uid-a"].netns) == ("", NOWHERE)
    assert pods.said.refused == {"fl/hosted": "it uses its node's own network (hostNetwork)"}
    assert pods.said.peers is None
    bound["status"] = {"phase": "Running", "podIP": "10.0.0.9"}
    pods.look()
    assert pods.said.pods["uid-a"].address == "10.0.0.9"


def test_another_label_is_told_from_an_end(cluster: Cluster) -> None:
    first, second = pod("a", node="node-a"), pod("b", node="node-a")
    cluster.lists["pods", "app=c"] = [first, second]
    pods = followed(cluster)
    pods.look()
    cluster.lists["pods", "app=c"] = []
    cluster.lists["pods", ""] = [first]  # b has ended
    for _ in range(2):
        pods.look()
        assert pods.said is not None
        assert (pods.said.pods, pods.said.relabelled) == ({}, {"uid-a"})
    cluster.lists["pods", "app=c"] = [first]
    pods.look()
    assert pods.said.relabelled == frozenset()
    assert list(pods.said.pods) == ["uid-a"]


def test_an_api_that_is_away_has_said_what_it_said(cluster: Cluster) -> None:
    cluster.lists["pods", "app=c"] = [pod("a", node="node-a")]
    pods = followed(cluster)
    pods.look()
    cluster.away = PreflightError("the Kubernetes API does not answer")
    pods.look()
    assert pods.problem == "the Kubernetes API does not answer"
    assert pods.said is not None
    assert list(pods.said.pods) == ["uid-a"]
    cluster.away = None
    pods.look()
    assert pods.problem == ""
    assert cluster.connected == 2  # what one logs in with may have changed


def test_peers_are_pods_of_any_node_and_the_services_in_front(cluster: Cluster) -> None:
    service = {
        "metadata": {"name": "s", "namespace": "fl"},
        "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "fl-client"}},
    }
    cluster.lists["pods", "app=s"] = [pod("p"), pod("q", phase="Pending", status_podIP="", status_podIPs=[])]
    cluster.lists["services", ""] = [service]
    pods = followed(cluster, to="app=s")
    pods.look()
    assert pods.said is not None
    assert pods.said.peers is not None
    assert [(peer.name, peer.address) for peer in pods.said.peers] == [
        ("p", "10.0.0.7"),
        ("service/s", "10.96.0.7"),
    ]


def test_services_that_may_not_be_listed_stay(cluster: Cluster) -> None:
    class NoServices(Cluster):
        def objects(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
            if kind == "services":
                raise PreflightError("may not list services")
            return super().objects(kind, namespace, selector)

    cluster = NoServices()
    cluster.lists["pods", "app=s"] = [pod("p")]
    known = Pod(
        name="service/s", namespace="fl", address="10.96.0.7", netns=NOWHERE, netns_inode=0, interface="",
        host_interface="", node_netns=NOWHERE,
    )  # fmt: skip
    pods = followed(cluster, to="app=s", services=(known,))
    pods.look()
    assert pods.said is not None
    assert pods.said.peers is not None
    assert [peer.name for peer in pods.said.peers] == ["p", "service/s"]


def test_it_is_asked_at_once_when_somebody_has_seen_a_pod(cluster: Cluster) -> None:
    with followed(cluster) as pods:
        assert cluster.answered.wait(10)
        cluster.answered.clear()
        pods.ask_now()
        assert cluster.answered.wait(0.8)  # before its time
