"""What pods of two nodes get of leases, by agents whose clocks differ; packets here are figures."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest

from tests.unit.test_leases import a_lease
from tests.unit.test_nodes_leases import COUNTED, HERE, A, B
from ztprobe.agent.interface import LeaseState, PlacedPods
from ztprobe.agent.nodes.leases import NodesLeases
from ztprobe.agent.nodes.verification import NodeLease, NodesVerification
from ztprobe.agent.pod_access import Arrival, PathLoad, PathProbes
from ztprobe.conformance.verification import Conformance
from ztprobe.errors import EnforcementError, PreflightError
from ztprobe.leases.records import StepInForce
from ztprobe.pods.model import Pod
from ztprobe.profile.model import FRAME_BYTES, Profile
from ztprobe.profile.schedule import Schedule, Step

AHEAD_NS = {"node-a": 0, "node-b": 3_000_000_000}  # their clocks
WAY_MS = 0.05
LATE = Profile(name="late", delay_ms=20, jitter_ms=5, distribution="normal")
RATE = Profile(name="rate", rate_mbit=10)


class Ways:
    """What packets from one pod to another get: delay and rate by the sender's name."""

    def __init__(self, **given: Profile) -> None:
        self.given = given
        self.chance = random.Random(1)

    def delay_ms(self, sender: str) -> float:
        profile = self.given.get(sender)
        return WAY_MS + (self.chance.choice(profile.expected_delays_ms) if profile is not None else 0.0)


class Agent:
    """A node's agent: it sends and takes for its own pods."""

    def __init__(self, node: str, ways: Ways, leases: list[LeaseState]) -> None:
        self.node, self.ways, self.there = node, ways, leases
        self.pods: dict[str, Pod] = {}
        self.unseen: dict[str, str] = {}
        self.closed = 0

    def leases(self) -> list[LeaseState]:
        # As it is told by another machine's clock, which is asked each time.
        steps = [
            one.step and dataclasses.replace(one.step, since_ns=random.getrandbits(20)) for one in self.there
        ]
        return [dataclasses.replace(one, step=step) for one, step in zip(self.there, steps, strict=True)]

    def place(self, pods: list[Pod]) -> PlacedPods:
        found = [dataclasses.replace(HERE[pod.name], node=self.node) for pod in pods]
        return PlacedPods(pods=found, unseen=self.unseen, places={})

    def open_ends(self, pods: list[Pod]) -> list[tuple[str, int]]:
        return [(f"{pod.name}@{self.node}", 7) for pod in pods]

    def close_ends(self) -> None:
        self.closed += 1

    def probe_path(self, share: PathProbes) -> dict[int, list[Arrival]]:
        arrived: dict[int, list[Arrival]] = {number: [] for number in share.own}
        for sender, receiver in share.flows:
            if receiver not in share.own:
                continue
            name, _, node = share.ends[sender][0].partition("@")
            for number in range(share.probes):
                sent_ns = 10**18 + number * 1_000_000
                got_ns = sent_ns + round(self.ways.delay_ms(name) * 1e6)
                arrived[receiver].append((sender, sent_ns + AHEAD_NS[node], got_ns + AHEAD_NS[self.node]))
        return arrived

    def load_path(self, share: PathLoad) -> dict[int, list[Arrival]]:
        if 0 not in share.own:
            return {}
        assert share.senders == (1,)
        profile = self.ways.given.get(share.ends[1][0].partition("@")[0])
        rate_mbit = (profile.rate_mbit if profile is not None else None) or 15.0
        gap_ns = FRAME_BYTES * 8e3 / rate_mbit
        return {0: [(1, 0, 10**18 + round(number * gap_ns)) for number in range(500)]}


def measured(profile: Profile, ways: Ways, *, step: StepInForce | None = None, **changes: Any) -> Conformance:
    """Of a lease on `a` of one node, measured with `b` of another."""
    lease = dataclasses.replace(
        a_lease(profile), **{"pods": (A,), "peers": None, "direction": "egress", "points": ()} | changes
    )
    state = LeaseState(lease=lease, counted=COUNTED, step=step)
    nodes = NodesLeases({}, None)
    agents = {"node-a": Agent("node-a", ways, [state]), "node-b": Agent("node-b", ways, [])}
    nodes.clients |= agents  # type: ignore[arg-type]
    one = NodeLease(node="node-a", state=state)
    verification = NodesVerification(nodes, [one], lambda _: [A, B], probes=1500)
    try:
        return verification.verify(one)
    finally:
        assert all(agent.closed == 1 for agent in agents.values())


def test_a_delay_is_measured_though_clocks_differ() -> None:
    # Namespaces are those of their nodes: the number that both have is not one namespace.
    verdict = measured(LATE, Ways(a=LATE), pods=(dataclasses.replace(HERE["a"], node="node-a"),))
    assert verdict.passed, verdict.problems
    (way,) = verdict.measured.directions
    assert str(way) == "a -> b"
    assert way.mean_ms == pytest.approx(20 + WAY_MS, abs=0.5)
    assert way.sd_ms == pytest.approx(5, rel=0.1)


def test_both_directions_of_a_lease_are_measured() -> None:
    here = dataclasses.replace(HERE["a"], node="node-a")
    verdict = measured(LATE, Ways(a=LATE, b=LATE), pods=(here,), direction="both")
    assert verdict.passed, verdict.problems
    assert [str(way) for way in verdict.measured.directions] == ["a -> b", "b -> a"]


def test_the_step_that_is_in_force_is_what_is_compared_with() -> None:
    steps = (Step(at_ns=0, delay_ms=50), Step(at_ns=10**9, delay_ms=20, jitter_ms=5, distribution="normal"))
    changing = Profile(name="changing", schedule=Schedule(steps=steps))
    held = StepInForce(number=1, step=1, since_ns=0, until_ns=None)
    here = dataclasses.replace(HERE["a"], node="node-a")
    verdict = measured(changing, Ways(a=LATE), pods=(here,), step=held)
    assert (verdict.passed, verdict.step) == (True, 1), verdict.problems
    assert not measured(changing, Ways(a=LATE), pods=(here,), step=dataclasses.replace(held, step=0)).passed


def test_a_delay_that_is_not_there_shows_as_half_and_is_refused() -> None:
    verdict = measured(LATE, Ways(), pods=(dataclasses.replace(HERE["a"], node="node-a"),))
    assert not verdict.passed
    (way,) = verdict.measured.directions
    assert way.mean_ms == pytest.approx(10 + WAY_MS, abs=0.5)
    assert verdict.measured.attempts == 3


@pytest.mark.parametrize(("ways", "passed", "seen_mbit"), [(Ways(a=RATE), True, 10), (Ways(), False, 15)])
def test_a_rate_needs_no_clocks(ways: Ways, passed: bool, seen_mbit: float) -> None:
    verdict = measured(RATE, ways, pods=(dataclasses.replace(HERE["a"], node="node-a"),))
    assert verdict.passed == passed
    (rate,) = verdict.measured.rates
    assert rate.goodput_mbit == pytest.approx(seen_mbit, rel=0.001)


@pytest.mark.parametrize(("others", "is_shared"), [(40, False), (900, True)])
def test_what_else_goes_through_a_rate_is_named(
    monkeypatch: pytest.MonkeyPatch, others: int, is_shared: bool
) -> None:
    of_probes, asked = 1503, itertools.count()  # with those that look for neighbours

    def leases(self: Agent) -> list[LeaseState]:
        # Asked right before and right after the probes.
        packets = (next(asked) + 1) // 2 * (of_probes + others)
        counted = {**COUNTED, "packets": packets, "overflow": 0}
        return [dataclasses.replace(one, counted=counted) for one in self.there]

    monkeypatch.setattr(Agent, "leases", leases)
    verdict = measured(RATE, Ways(), pods=(dataclasses.replace(HERE["a"], node="node-a"),))
    assert not verdict.passed
    said = f"other traffic shared the rate meanwhile ({others} packets beside {of_probes} probes)"
    assert any(cause.startswith(said) for cause in verdict.causes) == is_shared


def test_a_pod_that_its_agent_does_not_see_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(self: Agent, pods: list[Pod]) -> PlacedPods:
        return PlacedPods(pods=[], unseen={pod.name: f"{pod}: is not seen" for pod in pods}, places={})

    monkeypatch.setattr(Agent, "place", place)
    with pytest.raises(EnforcementError, match="fl/a: is not seen"):
        measured(RATE, Ways())


def test_an_agent_that_goes_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Agent, _: PathProbes) -> dict[int, list[Arrival]]:
        raise PreflightError("the agent at h:2 does not answer")

    monkeypatch.setattr(Agent, "probe_path", gone)
    with pytest.raises(PreflightError, match="does not answer"):
        measured(RATE, Ways())
