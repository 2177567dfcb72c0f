"""Leases of several nodes as one: planned everywhere before any begins, taken back where one cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_leases import a_lease
from tests.unit.test_pod_source import Answers, api, pod
from ztprobe.agent.interface import LeaseRequest, LeaseState
from ztprobe.agent.nodes.leases import NodesLeases
from ztprobe.agent.nodes.verification import NodeLease, choose_flows, reversed_ahead_ns
from ztprobe.cli.rendering.profile_nodes import applied_dict
from ztprobe.errors import EnforcementError, PreflightError, UsageError
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.selected_pods import selected_pods
from ztprobe.leases import records
from ztprobe.pods.model import NOWHERE, Pod
from ztprobe.pods.selectors import parse_selector
from ztprobe.process.interrupts import Interrupted
from ztprobe.profile.model import Profile

__all__ = ("api",)  # a fixture

SLOW = Profile(name="slow", rate_mbit=10)
COUNTED = {"in_force": "yes", "lapsed": [], "packets": 0, "drops": 0, "overflow": 0}


def named(name: str, node: str, *, address: str = "10.0.0.1", inode: int = 0) -> Pod:
    return Pod(
        name=name, namespace="fl", address=address, netns=Path("/n") / name if inode else NOWHERE,
        netns_inode=inode, interface="eth0" if inode else "", host_interface="", node_netns=NOWHERE,
        uid=f"uid-{name}", node=node,
    )  # fmt: skip


A, B, C = named("a", "node-a"), named("b", "node-b"), named("c", "node-b")
HERE = {one.name: dataclasses.replace(one, netns=Path("/n") / one.name, netns_inode=9) for one in (A, B, C)}


class Node:
    """Stands for a node's agent."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said
        self.refuses: dict[str, BaseException] = {}
        self.unseen: dict[str, str] = {}
        self.leases_there: list[str] = []

    def _do(self, call: str) -> None:
        self.said.append(f"{call} {self.name}")
        if call in self.refuses:
            raise self.refuses[call]

    def place(self, pods: list[Pod]) -> Any:
        from ztprobe.agent.interface import PlacedPods

        found = [HERE[pod.name] for pod in pods if pod.name not in self.unseen]
        return PlacedPods(pods=found, unseen=self.unseen, places={})

    def plan_lease(self, wanted: LeaseRequest) -> records.Lease:
        self._do("plan")
        lease = a_lease(SLOW)
        lease.id, lease.pods, lease.peers = str(wanted.lease_id), wanted.pods, wanted.peers
        return lease

    def begin_lease(self, lease: records.Lease) -> None:
        self._do("begin")
        self.leases_there.append(lease.id)

    def end_leases(self, ids: list[str]) -> list[records.Lease]:
        self._do("end")
        if not set(ids) <= set(self.leases_there):
            raise UsageError("no lease")
        self.leases_there = []
        return []

    def leave(self) -> None:
        self._do("leave")


class Nodes:
    """Two of them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.a, self.b = (Node(name, self.said) for name in ("node-a", "node-b"))
        self.leases = NodesLeases({"node-a": "h:1", "node-b": "h:2"}, None)
        self.leases.clients |= {"node-a": self.a, "node-b": self.b}  # type: ignore[dict-item]


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def wanted(*pods: Pod, peers: tuple[Pod, ...] | None = None) -> LeaseRequest:
    return LeaseRequest(profile=SLOW, pods=pods, peers=peers, lasts_s=60, selector="app=x", namespace="fl")


def test_one_name_and_each_node_s_own_pods(nodes: Nodes) -> None:
    service = dataclasses.replace(named("service/s", ""), uid="")
    planned = nodes.leases.plan(wanted(A, B, peers=(C, service)))
    assert list(planned) == ["node-a", "node-b"]
    first, second = planned.values()
    assert first.id == second.id
    assert records.is_id(first.id)
    assert (first.pods, second.pods) == ((HERE["a"],), (HERE["b"],))
    # A peer is more than an address on its own node alone.
    assert first.peers == (C, service)
    assert second.peers == (HERE["c"], service)
    with nodes.leases.begun(planned, pytest.fail):
        pass
    assert sorted(nodes.said) == ["begin node-a", "begin node-b", "plan node-a", "plan node-b"]


def test_what_one_refuses_begins_nowhere(nodes: Nodes) -> None:
    nodes.b.refuses["plan"] = EnforcementError("fl/b is under slow already")
    with pytest.raises(EnforcementError) as raised:
        nodes.leases.plan(wanted(A, B))
    assert str(raised.value) == "node node-b: fl/b is under slow already; nothing was put on any node"
    for node in (nodes.a, nodes.b):
        node.refuses["plan"] = EnforcementError("it is under a lease: ztprobe profile clear abcdef")
    with pytest.raises(EnforcementError) as raised:
        nodes.leases.plan(wanted(A, B))
    assert str(raised.value) == (
        "node node-a: it is under a lease: ztprobe profile clear abcdef --agents; node-b could not either;"
        " nothing was put on any node"
    )
    del nodes.a.refuses["plan"]
    nodes.b.unseen = {"b": "fl/b: the agent of node node-b sees none of its processes"}
    with pytest.raises(PreflightError, match="sees none of its processes; nothing was put on any node"):
        nodes.leases.plan(wanted(A, B))
    with pytest.raises(
        PreflightError, match=r"fl/d on node-d: no agent was asked there \(agents: node-a, node-b\)"
    ):
        nodes.leases.plan(wanted(A, named("d", "node-d")))
    assert not any(one.startswith("begin") for one in nodes.said)


def test_where_one_cannot_begin_the_others_end(nodes: Nodes) -> None:
    planned = nodes.leases.plan(wanted(A, B))
    nodes.b.refuses["begin"] = EnforcementError("the kernel refused tbf")
    with (
        pytest.raises(
            EnforcementError, match="node node-b: the kernel refused tbf; nothing of it is left on any"
        ),
        nodes.leases.begun(planned, pytest.fail),
    ):
        pytest.fail("it has not begun")
    assert nodes.a.leases_there == nodes.b.leases_there == []
    assert {"end node-a", "end node-b"} <= set(nodes.said)


@pytest.mark.parametrize("when", ["begin", "body"])
def test_interrupted_nothing_is_left_and_what_is_not_known_is_said(nodes: Nodes, when: str) -> None:
    planned = nodes.leases.plan(wanted(A, B))
    told: list[str] = []
    if when == "begin":
        nodes.b.refuses["begin"] = Interrupted(2)
    nodes.b.refuses["end"] = PreflightError("the agent at h:2 does not answer")
    with pytest.raises(Interrupted), nodes.leases.begun(planned, told.append):
        raise Interrupted(2)
    assert nodes.a.leases_there == []
    (line,) = told
    lease = planned["node-b"].id
    assert line == (
        f"node node-b: the agent at h:2 does not answer; lease {lease} may be in force there, for 1m at most:"
        f" ztprobe profile clear {lease} --agents"
    )


def test_what_is_printed_of_several_is_one_lease_s(nodes: Nodes) -> None:
    planned = nodes.leases.plan(wanted(A, B))
    said = applied_dict(planned, ("later",))
    assert said["pods"] == ["fl/a", "fl/b"]
    assert said["nodes"] == {"node-a": ["fl/a"], "node-b": ["fl/b"]}
    assert (said["remaining_s"], said["dry_run"]) == (60.0, True)
    assert said["notes"][0] == "later"
    assert {one["node"] for one in said["interfaces"]} == {"node-a", "node-b"}


def test_pods_of_all_nodes_are_selected_by_the_api(api: Answers) -> None:
    api.pods = [pod("a", node="node-a"), pod("b", node="node-b"), pod("c", node="node-b", phase="Pending")]
    everything = parse_selector("")
    found = selected_pods(Api(), everything, None, "fl")
    assert [(one.name, one.node, one.is_here) for one in found.pods] == [
        ("a", "node-a", False),
        ("b", "node-b", False),
    ]
    assert found.peers is None
    assert found.notes == ("fl/c left out: not running yet, or ending",)
    api.pods[0]["spec"]["hostNetwork"] = True
    with pytest.raises(EnforcementError, match="fl/a uses its node's own network"):
        selected_pods(Api(), everything, None, "fl")


def state(lease: records.Lease, node: str, **counted: Any) -> NodeLease:
    return NodeLease(node=node, state=LeaseState(lease=lease, counted=COUNTED | counted, step=None))


def on(node: str, *pods: Pod, **changes: Any) -> NodeLease:
    lease = a_lease(SLOW)
    return state(
        dataclasses.replace(lease, **{"pods": pods, "peers": None, "direction": "egress"} | changes), node
    )


def test_each_pod_is_measured_with_somebody_near_who_is_not_under_the_lease() -> None:
    d = named("d", "node-a")
    mine, theirs = on("node-a", A), on("node-b", B)
    theirs.lease.id = mine.lease.id
    everything = [mine, theirs]
    assert choose_flows(mine, everything, [A, B, C, d]) == [(A, d)]
    assert choose_flows(theirs, everything, [A, B, C, d]) == [(B, C)]
    assert choose_flows(mine, everything, [A, B, C]) == [(A, C)]  # another node rather than twice under it
    assert choose_flows(mine, everything, [A, B]) == [(A, B)]
    towards = on("node-a", A, peers=(C,), direction="both")
    assert choose_flows(towards, [towards], [A, B, C, d]) == [(A, C), (C, A)]
    with pytest.raises(
        EnforcementError, match="fl/a: none of the pods of --to is on a node whose agent answers"
    ):
        choose_flows(towards, [towards], [A, B, d])
    with pytest.raises(EnforcementError, match="fl/a: no other pod is on a node"):
        choose_flows(mine, everything, [A])
    with pytest.raises(EnforcementError, match="is on pods of the local runtime there"):
        choose_flows(on("node-a", dataclasses.replace(A, run="r")), everything, [A, B])
    gone = on("node-a", A)
    gone.state.counted["lapsed"] = ["fl/a"]
    for pods, one in (([B], mine), ([A, B], gone)):
        with pytest.raises(EnforcementError, match="none of its pods is there any more"):
            choose_flows(one, everything, pods)


@pytest.mark.parametrize(
    ("there_ms", "back_ms", "apart_ms", "ahead_ms"),
    [
        (20, 0, 20, 0),  # as asked for, and the clocks agree
        (1020, -1000, 20, 1000),
        (1080, -920, 0, 1000),  # both directions alike
        (0, 0, 20, -10),  # not in force: half of what is missing shows
    ],
)
def test_clocks_are_told_apart_by_what_is_asked_of_both_directions(
    there_ms: float, back_ms: float, apart_ms: float, ahead_ms: float
) -> None:
    took = [[round((one + shift) * 1e6) for shift in (-1, 0, 1)] for one in (there_ms, back_ms)]
    assert reversed_ahead_ns(*took, apart_ms) == ahead_ms * 1e6
    assert reversed_ahead_ns([], took[1], apart_ms) == 0
