"""Leases that follow their selector, through agents: where they are planned, and what an agent takes on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.unit.test_leases import a_lease
from tests.unit.test_nodes_leases import HERE, SLOW, A, Node, Nodes, nodes, wanted
from ztprobe.agent import coming_pods
from ztprobe.agent.coming_pods import why_unheard
from ztprobe.agent.interface import LeaseRequest
from ztprobe.agent.placed_leases import PlacedLeases
from ztprobe.cli.rendering.profile_nodes import applied_dict
from ztprobe.errors import PreflightError, UsageError
from ztprobe.leases import records
from ztprobe.leases.following import Following

__all__ = ("nodes",)  # a fixture

FOLLOW = Following(runtime="kubernetes", at="host", replace=True)


def followed(*pods: Any) -> LeaseRequest:
    return dataclasses.replace(wanted(*pods), follow=FOLLOW)


def following(node: Node, why_not: str = "") -> list[Following | None]:
    """Have a node's agent follow, or say why it does not; what it is asked."""
    asked: list[Following | None] = []
    plan = node.plan_lease

    def plan_lease(request: LeaseRequest) -> records.Lease:
        asked.append(request.follow)
        lease = plan(request)
        lease.follow, lease.why_not_followed = (None, why_not) if why_not else (request.follow, "")
        return lease

    node.plan_lease = plan_lease  # type: ignore[method-assign]
    return asked


def test_nodes_without_such_pods_have_the_lease_too(nodes: Nodes) -> None:
    asked = following(nodes.a)
    following(nodes.b)
    planned = nodes.leases.plan(followed(A))
    assert list(planned) == ["node-a", "node-b"]
    assert len({lease.id for lease in planned.values()}) == 1
    assert planned["node-b"].pods == ()
    assert planned["node-b"].follow == dataclasses.replace(FOLLOW, node="node-b")
    assert nodes.leases.unfollowed == {}
    assert asked == [dataclasses.replace(FOLLOW, node="node-a")]
    said = applied_dict(planned, [])
    assert said["nodes"] == {"node-a": ["fl/a"], "node-b": []}
    with nodes.leases.begun(planned, pytest.fail):
        pass
    assert sorted(nodes.said) == ["begin node-a", "begin node-b", "plan node-a", "plan node-b"]


def test_not_where_their_agents_cannot_and_that_hinders_nobody(nodes: Nodes) -> None:
    following(nodes.a)
    following(nodes.b, "nobody says")
    planned = nodes.leases.plan(followed(A))
    assert list(planned) == ["node-a"]
    assert nodes.leases.unfollowed == {"node-b": "nobody says"}
    nodes.b.refuses["plan"] = PreflightError("node node-b: slow needs netem")
    assert list(nodes.leases.plan(followed(A))) == ["node-a"]
    assert nodes.leases.unfollowed == {"node-b": "slow needs netem"}


def test_an_agent_that_cannot_ask_holds_it_for_the_pods_it_was_told_of(nodes: Nodes) -> None:
    following(nodes.a, "no cluster's API can be asked")
    planned = nodes.leases.plan(followed(A))
    assert applied_dict(planned, [])["notes"] == [
        "pods that come later or are restarted are not under it: no cluster's API can be asked"
    ]


def test_none_is_asked_ahead_where_it_is_not_followed(nodes: Nodes) -> None:
    assert list(nodes.leases.plan(wanted(A))) == ["node-a"]
    assert nodes.said == ["plan node-a"]


class There:
    """Stands for a node's leases."""

    def plan_lease(self, asked: LeaseRequest) -> records.Lease:
        lease = a_lease(SLOW)
        lease.pods, lease.peers, lease.follow = asked.pods, asked.peers, asked.follow
        return lease


def test_an_agent_follows_pods_of_its_own_node(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def heard(namespace: str, selector: str) -> str:
        asked.append((namespace, selector))
        return ""

    leases = PlacedLeases(There(), {"a": HERE["a"]}, heard)  # type: ignore[arg-type]
    monkeypatch.setenv("NODE_NAME", "node-a")
    said = dataclasses.replace(FOLLOW, node="another", runs=("r",))
    lease = leases.plan_lease(dataclasses.replace(wanted(HERE["a"]), follow=said))
    assert lease.follow == dataclasses.replace(FOLLOW, node="node-a")
    assert asked == [("fl", "app=x")]
    monkeypatch.delenv("NODE_NAME")
    lease = leases.plan_lease(dataclasses.replace(wanted(), follow=said))
    assert lease.follow == dataclasses.replace(FOLLOW, node="another")
    assert lease.pods == ()
    local = dataclasses.replace(FOLLOW, runtime="local", runs=("r",))
    with pytest.raises(UsageError, match="an agent follows a cluster's pods, and no others"):
        leases.plan_lease(dataclasses.replace(wanted(HERE["a"]), follow=local))


def test_it_says_why_it_does_not() -> None:
    leases = PlacedLeases(There(), {"a": HERE["a"]}, lambda *_: "nobody says")  # type: ignore[arg-type]
    lease = leases.plan_lease(dataclasses.replace(wanted(HERE["a"]), follow=FOLLOW))
    assert (lease.follow, lease.why_not_followed) == (None, "nobody says")
    assert leases.plan_lease(wanted(HERE["a"])).why_not_followed == ""


def test_who_can_ask_an_api(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        problem = ""

        def objects(self, *_: str) -> list[Any]:
            if self.problem:
                raise PreflightError(self.problem)
            return []

    monkeypatch.setattr(coming_pods, "configured", lambda: False)
    assert why_unheard("fl", "app=x").startswith("no cluster's API can be asked from there")
    monkeypatch.setattr(coming_pods, "configured", lambda: True)
    monkeypatch.setattr(coming_pods, "Api", Api)
    assert why_unheard("fl", "app=x") == ""
    monkeypatch.setattr(Api, "problem", "may not list pods")
    assert why_unheard("fl", "app=x") == "may not list pods"
