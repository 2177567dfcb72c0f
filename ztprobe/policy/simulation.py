"""Proposed policies over connections that were recorded: which of them would be denied, by what. Pure.

The proposed objects stand alone: a policy of the run counts where it is among them. What a saved run
does not tell about its pods (the names of their ports, where the run is of an older schema) is not
known, and a verdict that needs it is undecidable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ztprobe.policy.explanation import Explainer, Explanation
from ztprobe.policy.model import ClusterPod, Objects

__all__ = ("Recorded", "Simulated", "merged", "simulate")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Connections of one source to one port."""

    source: str  # namespace/pod, or an address
    target: str
    protocol: str
    port: int
    answered: int  # how many the other side answered
    unanswered: int  # how many it did not: refused, dropped or lost


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What would become of them."""

    recorded: Recorded
    explanation: Explanation


def merged(proposed: Objects, pods: Iterable[ClusterPod]) -> Objects:
    """Proposed objects with a run's pods: what a file says of a pod goes before, but for its addresses."""
    known = {pod.id: pod for pod in proposed.pods}
    for pod in pods:
        given = known.get(pod.id)
        known[pod.id] = pod if given is None else replace(given, addresses=pod.addresses or given.addresses)
    return replace(proposed, pods=tuple(known.values()))


def simulate(objects: Objects, recorded: Iterable[Recorded]) -> list[Simulated]:
    """The verdict on each, in the order given."""
    explainer = Explainer(objects)
    return [
        Simulated(recorded=one, explanation=explainer.explain(one.source, one.target, one.protocol, one.port))
        for one in recorded
    ]
