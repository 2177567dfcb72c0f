"""What pods under leases get, measured through their nodes' agents: on one node, and between nodes.

As `ztprobe.conformance.verification` does it on a node, and judged alike. Probes between nodes are sent by
one agent and taken by another, and what the two clocks differ by is not known: they are sent back as well,
and the medians of both directions are taken to be apart by what leases ask of them. So the sum of both
directions' delays is measured, and a delay that is wrong on one shows as half of that; loss, rate and how
much a delay varies need no clocks.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ztprobe.agent.interface import LeaseState
from ztprobe.agent.nodes.leases import NodesLeases
from ztprobe.agent.pod_access import Address, Arrival, PathLoad, PathProbes
from ztprobe.conformance.judgement import Measured, OneWay, Rate, direction
from ztprobe.conformance.mismatch import Flow, PathActivity, applied_twice, met_leases, moment_causes
from ztprobe.conformance.udp_probe import can_offer, rate_of
from ztprobe.conformance.verification import (
    ATTEMPTS,
    CLOSED_PODS,
    INTERRUPTIONS,
    Conformance,
    await_step,
    probes_take_s,
    whole_s,
)
from ztprobe.errors import EnforcementError, ZtprobeError
from ztprobe.leases.records import Lease, StepInForce
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile

__all__ = ("NodeLease", "NodesVerification", "choose_flows", "reversed_ahead_ns")

_LATE_S = 0.5  # what calls to two agents may be apart
_RESOLVING, _RESOLVING_S = 3, 0.05
_AT_ONCE = 200_000  # probes: an answer holds them all

_Share = TypeVar("_Share", PathProbes, PathLoad)
_Pair = tuple[int, int]  # numbers of sender and receiver


@dataclass(frozen=True, kw_only=True)
class NodeLease:
    """A lease as its node has it."""

    node: str
    state: LeaseState

    @property
    def lease(self) -> Lease:
        """The lease itself."""
        return self.state.lease


def choose_flows(one: NodeLease, everything: Iterable[NodeLease], pods: Sequence[Pod]) -> list[Flow]:
    """Whom each pod under a lease is measured with, in the directions that are shaped.

    Somebody who is not under the lease, so that a packet meets it once, and rather on the same node.

    :param pods: that run, on nodes with an agent; named by the API.
    :raises EnforcementError: there is nobody, or no pod is under the lease any more.
    """
    lease = one.lease
    if any(pod.runtime == "local" for pod in lease.pods):
        raise EnforcementError(
            f"lease {lease.id}: is on pods of the local runtime there: verify it on that machine"
        )
    if not lease.pods:
        raise EnforcementError(f"lease {lease.id}: no pod is under it there at the moment")
    lapsed = set(one.state.counted["lapsed"])
    mine = {pod.uid for pod in lease.pods if str(pod) not in lapsed}
    here = [pod for pod in pods if pod.uid in mine and pod.node == one.node]
    if not here:
        raise EnforcementError(f"lease {lease.id}: none of its pods is there any more")
    under = {pod.uid for other in everything if other.lease.id == lease.id for pod in other.lease.pods}
    peers = None if lease.peers is None else {pod.uid for pod in lease.peers if pod.uid}
    flows: list[Flow] = []
    for number, pod in enumerate(here):
        others = [p for p in pods if p.uid != pod.uid and (peers is None or p.uid in peers)]
        others = [p for p in others if p.uid not in under] or others
        if not others:
            whom = "none of the pods of --to" if peers is not None else "no other pod"
            raise EnforcementError(f"{pod}: {whom} is on a node whose agent answers, to measure with")
        near = [p for p in others if p.node == pod.node] or others
        other = near[number % len(near)]
        flows += [(pod, other) if way == "egress" else (other, pod) for way in lease.directions]
    return flows


def reversed_ahead_ns(there_ns: Sequence[int], back_ns: Sequence[int], apart_ms: float) -> int:
    """How far the receiver's clock is ahead of the sender's.

    :param there_ns: what probes took by these clocks, and those sent back.
    :param apart_ms: by how much the first direction is to take longer.
    """
    if not there_ns or not back_ns:
        return 0
    seen_ns = statistics.median(there_ns) - statistics.median(back_ns)
    return round((seen_ns - apart_ms * 1e6) / 2)


class NodesVerification:
    """Of leases of which all nodes have sessions.

    :param everything: all nodes' leases, for paths that meet more than one.
    :param running: the running pods of a namespace, on nodes with an agent that answers.
    """

    def __init__(
        self,
        nodes: NodesLeases,
        everything: Sequence[NodeLease],
        running: Callable[[str], Sequence[Pod]],
        *,
        probes: int,
    ) -> None:
        self._nodes, self._everything, self._running = nodes, everything, running
        self._probes = probes

    def verify(self, one: NodeLease) -> Conformance:
        """Measure and judge one node's part of a lease, which is in force there.

        :raises EnforcementError: nothing can be measured.
        :raises ZtprobeError: an agent does not answer.
        """
        chosen = choose_flows(one, self._everything, self._running(one.lease.namespace))
        pods = list({pod.uid: pod for flow in chosen for pod in flow}.values())
        used = {pod.node for pod in pods}
        try:
            path = _Path(self._nodes, pods)
            flows = [(path.pods[a.uid], path.pods[b.uid]) for a, b in chosen]
            return self._judged(one, path, flows)
        finally:
            for node in used:
                with contextlib.suppress(ZtprobeError):  # it is gone, and its sockets with it
                    self._nodes.clients[node].close_ends()

    def _judged(self, one: NodeLease, path: _Path, flows: Sequence[Flow]) -> Conformance:
        lease, probes = one.lease, self._probes
        count = len(flows) + sum(a.node != b.node for a, b in flows)
        attempts, interrupted = 1, 0
        while True:
            held = await_step(lease, lambda step: _takes_s(step, count, probes), lambda: self._step(one))
            step = lease.profile.steps[0 if held is None else held.step]
            seconds = probes_take_s(step, count, probes)
            asked_ms = functools.partial(_asked_ms, self._now())
            before = self._counted(one)
            directions = path.delays(flows, step, probes, seconds, asked_ms)
            activity = _activity(before, self._counted(one), step, (probes + _RESOLVING) * len(flows))
            measured = Measured(directions=directions, rates=path.rates(flows, step), attempts=attempts)
            if held is not None and _number(self._step(one)) != held.number:
                interrupted += 1
                if interrupted < INTERRUPTIONS:
                    continue
                raise EnforcementError(f"lease {lease.id}: its profile changed during every measurement")
            problems = measured.problems(step)
            if not problems or attempts == ATTEMPTS:
                break
            attempts += 1
        return Conformance(
            lease=lease,
            measured=measured,
            problems=tuple(problems),
            causes=tuple([*self._causes(one, measured, flows), *moment_causes(activity)] if problems else ()),
            step=None if held is None else held.step,
        )

    def _step(self, one: NodeLease) -> StepInForce | None:
        if one.lease.profile.schedule is None:
            return None
        found = [state for state in self._nodes.clients[one.node].leases() if state.lease.id == one.lease.id]
        return found[0].step if found else None

    def _now(self) -> Sequence[NodeLease]:
        """All nodes' leases with the steps that they are in."""
        if all(one.lease.profile.schedule is None for one in self._everything):
            return self._everything
        return [
            NodeLease(node=node, state=state)
            for node, client in self._nodes.clients.items()
            for state in client.leases()
        ]

    def _counted(self, one: NodeLease) -> Mapping[str, Any]:
        """What its node's kernel has counted of it by now (`ztprobe.emulation.counters`)."""
        states = self._nodes.clients[one.node].leases()
        return next((state.counted for state in states if state.lease.id == one.lease.id), {})

    def _causes(self, one: NodeLease, measured: Measured, flows: Sequence[Flow]) -> list[str]:
        causes = []
        state = str(self._counted(one).get("in_force", ""))
        if not state.startswith("yes"):
            causes.append(f"the profile is not on the path ({state.removeprefix('no: ') or 'it has ended'})")
        causes += applied_twice([each.lease for each in self._everything], flows)
        if not any(d.received for d in measured.directions):
            causes.append(CLOSED_PODS)
        return causes


def _takes_s(step: Profile, flows: int, probes: int) -> float:
    """How long a whole measurement takes, with what calls to two agents may be apart each time."""
    return whole_s(step, flows, probes) + (2 + flows) * _LATE_S


def _activity(
    before: Mapping[str, Any], after: Mapping[str, Any], step: Profile, probes: int
) -> PathActivity:
    """What the lease's own queues tell of the measurement; what its node's CPUs did is not known here."""
    packets, overflow = (after.get(name, 0) - before.get(name, 0) for name in ("packets", "overflow"))
    return PathActivity(
        idle={},
        stolen=0.0,
        overflow=max(0, overflow),
        timer_resolution_ms=0.0,
        timer_late_ms=0.0,
        probes=probes,
        others=0 if step.rate_mbit is None else max(0, packets - probes),
    )


def _number(step: StepInForce | None) -> int | None:
    return None if step is None else step.number


def _asked_ms(leases: Sequence[NodeLease], flow: Flow) -> float:
    """The delay that leases ask of a direction, in the median."""
    asked = 0.0
    for lease, _, _ in met_leases([one.lease for one in leases], flow):
        step = next(one.state.step for one in leases if one.lease is lease)
        held = lease.profile.steps[0 if step is None else step.step]
        asked += statistics.median(held.expected_delays_ms)
    return asked


class _Path:
    """A socket in each pod, by its node's agent.

    :param named: as the API names them; `pods` has them by UID as their nodes' kernels do.
    """

    def __init__(self, nodes: NodesLeases, named: Sequence[Pod]) -> None:
        self._clients = {pod.node: nodes.clients[pod.node] for pod in named}
        self.pods: dict[str, Pod] = {}
        addresses: dict[str, Address] = {}
        for node, client in self._clients.items():
            placed = client.place([pod for pod in named if pod.node == node])
            for why in placed.unseen.values():
                raise EnforcementError(why)
            opened = client.open_ends(placed.pods)
            addresses |= {pod.uid: end for pod, end in zip(placed.pods, opened, strict=True)}
            self.pods |= {pod.uid: pod for pod in placed.pods}
        self._all = list(self.pods.values())
        self._numbers = {pod.uid: number for number, pod in enumerate(self._all)}
        self._addresses = tuple(addresses[pod.uid] for pod in self._all)

    def _have(self, share: _Share, numbers: Sequence[int], name: str) -> dict[int, list[Arrival]]:
        """Each node's part of a share, done at once.

        :param numbers: of the pods that are its ends, in their order.
        """
        nodes = list(dict.fromkeys(self._all[number].node for number in numbers))

        def part(node: str) -> Mapping[int, list[Arrival]]:
            own = {
                place: self._all[number].name
                for place, number in enumerate(numbers)
                if self._all[number].node == node
            }
            found: Mapping[int, list[Arrival]] = getattr(self._clients[node], name)(replace(share, own=own))
            return found

        arrived: dict[int, list[Arrival]] = {}
        with ThreadPoolExecutor(len(nodes)) as threads:
            for found in threads.map(part, nodes):
                arrived |= found
        return arrived

    def _probed(
        self, pairs: Sequence[_Pair], step: Profile, probes: int, seconds: float
    ) -> dict[int, list[Arrival]]:
        share = PathProbes(
            ends=self._addresses,
            own={},
            flows=tuple(pairs),
            profile=step,
            probes=probes,
            seconds=seconds,
            late_s=_LATE_S,
        )
        return self._have(share, range(len(self._all)), "probe_path")

    def delays(
        self,
        flows: Sequence[Flow],
        step: Profile,
        probes: int,
        seconds: float,
        asked_ms: Callable[[Flow], float],
    ) -> tuple[OneWay, ...]:
        """Of each flow.

        :param probes: along each.
        :param seconds: for all of them.
        :param asked_ms: what is asked of a direction, in the median.
        """
        pairs = [(self._numbers[a.uid], self._numbers[b.uid]) for a, b in flows]
        back = [(b, a) for a, b in pairs if self._all[a].node != self._all[b].node]
        wanted = list(dict.fromkeys([*pairs, *back]))
        # Neighbours are asked for now: an answer that is late would hold the first probes.
        self._probed(wanted, step, _RESOLVING, _RESOLVING_S)
        took: dict[_Pair, list[int]] = {}
        twice: dict[_Pair, int] = {}
        each = max(2, _AT_ONCE // probes)
        for begin in range(0, len(wanted), each):
            some = wanted[begin : begin + each]
            arrived = self._probed(some, step, probes, seconds * len(some) / len(wanted))
            for sender, receiver in some:
                mine = [(sent, got) for who, sent, got in arrived.get(receiver, ()) if who == sender]
                first = dict(reversed(mine))  # of a probe that came twice
                took[sender, receiver] = [got - sent for sent, got in first.items()]
                twice[sender, receiver] = len(mine) - len(first)
        found = []
        for pair, flow in zip(pairs, flows, strict=True):
            ahead_ns = 0
            if flow[0].node != flow[1].node:
                apart_ms = asked_ms(flow) - asked_ms(flow[::-1])
                ahead_ns = reversed_ahead_ns(took[pair], took[pair[::-1]], apart_ms)
            delays_ms = [(one - ahead_ns) / 1e6 for one in took[pair]]
            found.append(
                direction(
                    flow[0].name,
                    flow[1].name,
                    probes,
                    delays_ms,
                    duplicates=twice[pair],
                    profile=step,
                )
            )
        return tuple(found)

    def rates(self, flows: Sequence[Flow], step: Profile) -> tuple[Rate, ...]:
        """Of each flow's sender, one after the other."""
        if step.rate_mbit is None:
            return ()
        if not can_offer(step, 1):
            return tuple(Rate(sender=sender.name, goodput_mbit=None, frames=0) for sender, _ in flows)
        found = []
        for sender, receiver in flows:
            numbers = [self._numbers[receiver.uid], self._numbers[sender.uid]]
            ends = tuple(self._addresses[number] for number in numbers)
            share = PathLoad(ends=ends, own={}, profile=step, late_s=_LATE_S, senders=(1,))
            arrived = self._have(share, numbers, "load_path")
            times = sorted(got for who, _, got in arrived.get(0, ()) if who == 1)
            found.append(rate_of(sender.name, times, step))
        return tuple(found)
