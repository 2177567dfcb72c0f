"""What pods of several nodes get of the profile that is in force, by probes between them.

Each node's agent sends and takes those of its own pods. When a probe was sent is told by one node's clock,
and when it came by another's. What the two differ by is not known before the run, so it is taken out by what
a profile does to both directions alike: their medians are made equal. So the sum of two directions is
measured, and how it is shared between them is not; loss, rate and how much a delay varies need no clocks.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ztprobe.agent.pod_access import Address, Arrival, PathLoad, PathProbes
from ztprobe.agent.service.node_session import NodeSession
from ztprobe.conformance.judgement import Measured, OneWay, Rate, direction
from ztprobe.conformance.udp_probe import PROBES, can_offer, probing_s, rate_of
from ztprobe.profile.model import Profile

__all__ = ("ClockOffsets", "measured_path")

_ATTEMPTS = 3
_LATE_S = 0.5  # what calls to two agents may be apart

# By node: how far its wall clock is ahead of the server's node's, in nanoseconds.
ClockOffsets = dict[str, int]
_Share = TypeVar("_Share", PathProbes, PathLoad)


@dataclass(frozen=True, kw_only=True)
class _Ends:
    """All pods, the server first."""

    names: tuple[str, ...]
    addresses: tuple[Address, ...]
    nodes: tuple[str, ...]  # of each
    sessions: Mapping[str, NodeSession]

    def own(self, node: str) -> dict[int, str]:
        return {number: self.names[number] for number, where in enumerate(self.nodes) if where == node}

    def have(self, share: _Share, work: Callable[[NodeSession, _Share], _Arrivals]) -> _Arrivals:
        """Each node's share done at once, and all that arrived."""
        found: _Arrivals = {}
        with ThreadPoolExecutor(max_workers=len(self.sessions)) as pool:
            shares = [dataclasses.replace(share, own=self.own(node)) for node in self.sessions]
            for arrived in pool.map(work, self.sessions.values(), shares):
                found |= arrived
        return found


_Arrivals = dict[int, list[Arrival]]


def measured_path(
    sessions: Mapping[str, NodeSession], server: str, clients: Sequence[str], profile: Profile
) -> tuple[Measured, ClockOffsets]:
    """See the module. What has problems is measured again, up to twice.

    :param sessions: by node, the server's first.
    :param profile: that is in force; of a schedule its first step is.
    """
    step, names = profile.steps[0], (server, *clients)
    node_of = {pod: node for node, session in sessions.items() for pod in session.pods}
    addresses: dict[str, Address] = {}
    try:
        for node, session in sessions.items():
            here = [name for name in names if node_of[name] == node]
            found = session.client.open_ends([session.pods[name] for name in here])
            addresses |= dict(zip(here, found, strict=True))
        ends = _Ends(
            names=names,
            addresses=tuple(addresses[name] for name in names),
            nodes=tuple(node_of[name] for name in names),
            sessions=sessions,
        )
        attempts = 1
        while True:
            directions, offsets = _delays(ends, step)
            measured = Measured(directions=directions, rates=_rates(ends, step, offsets), attempts=attempts)
            if attempts == _ATTEMPTS or not measured.problems(step):
                return measured, offsets
            attempts += 1
    finally:
        for session in sessions.values():
            session.client.close_ends()


def _delays(ends: _Ends, step: Profile) -> tuple[tuple[OneWay, ...], ClockOffsets]:
    flows = tuple(pair for client in range(1, len(ends.names)) for pair in ((client, 0), (0, client)))
    share = PathProbes(
        ends=ends.addresses,
        own={},
        flows=flows,
        profile=step,
        probes=PROBES,
        seconds=probing_s(len(flows)),
        late_s=_LATE_S,
    )
    arrived = ends.have(share, lambda session, mine: session.client.probe_path(mine))
    took: dict[tuple[int, int], list[int]] = {}
    twice: dict[tuple[int, int], int] = {}
    for sender, receiver in flows:
        mine = [(sent, got) for who, sent, got in arrived.get(receiver, ()) if who == sender]
        first = dict(reversed(mine))  # of a probe that came twice
        took[sender, receiver] = [got - sent for sent, got in first.items()]
        twice[sender, receiver] = len(mine) - len(first)
    offsets = clock_offsets(ends.nodes, took)
    directions = []
    for sender, receiver in flows:
        behind_ns = offsets[ends.nodes[receiver]] - offsets[ends.nodes[sender]]
        directions.append(
            direction(
                ends.names[sender],
                ends.names[receiver],
                PROBES,
                [(one - behind_ns) / 1e6 for one in took[sender, receiver]],
                duplicates=twice[sender, receiver],
                profile=step,
            )
        )
    return tuple(directions), offsets


def clock_offsets(nodes: Sequence[str], took: Mapping[tuple[int, int], Sequence[int]]) -> ClockOffsets:
    """How far nodes' wall clocks are ahead of the server's, if both directions take as long.

    :param nodes: of each end, the server's first.
    :param took: (sender, receiver) -> by these clocks, in nanoseconds.
    """
    found = {nodes[0]: 0}
    for node in dict.fromkeys(nodes):
        there = [one for pair, times in took.items() if nodes[pair[1]] == node for one in times]
        back = [one for pair, times in took.items() if nodes[pair[0]] == node for one in times]
        if node != nodes[0]:
            apart = statistics.median(there) - statistics.median(back) if there and back else 0.0
            found[node] = round(apart / 2)
    return found


def _rates(ends: _Ends, step: Profile, offsets: ClockOffsets) -> tuple[Rate, ...]:
    if step.rate_mbit is None:
        return ()
    if not can_offer(step, len(ends.names)):
        return tuple(Rate(sender=name, goodput_mbit=None, frames=0) for name in ends.names)
    share = PathLoad(ends=ends.addresses, own={}, profile=step, late_s=_LATE_S)
    arrived = ends.have(share, lambda session, mine: session.client.load_path(mine))
    times: list[list[int]] = [[] for _ in ends.names]
    for receiver, found in arrived.items():
        for sender, _, got in found:
            times[sender].append(got - offsets[ends.nodes[receiver]])
    return tuple(rate_of(name, sorted(mine), step) for name, mine in zip(ends.names, times, strict=True))
