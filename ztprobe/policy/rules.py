"""What NetworkPolicies come to for the pods of the local runtime: verdicts by pods' names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ztprobe.policy.compiled import Compiled
from ztprobe.policy.explanation import Explainer
from ztprobe.policy.model import DIRECTIONS, Objects
from ztprobe.policy.sides import DENIED

__all__ = ("PolicyPod", "Ruleset", "Verdict")


@dataclass(frozen=True, kw_only=True)
class PolicyPod:
    """A pod as policies see it."""

    name: str  # unique among the pods given
    namespace: str
    labels: Mapping[str, str]
    address: str  # IPv4
    # containerPort names: (protocol, name) -> number
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a new connection passes, and the policies that decided.

    Allowed: those with a rule for it (none: no policy selects either pod).
    Denied: those that isolate a pod in the direction that failed.
    """

    allowed: bool
    policies: tuple[str, ...]
    direction: str | None = None  # that failed: egress (at the sender) or ingress (at the receiver)


class Ruleset:
    """Policies resolved against pods."""

    def __init__(self, pods: tuple[PolicyPod, ...], objects: Objects) -> None:
        self.pods = pods
        self.explainer = Explainer(objects)
        self._ids = {pod.name: f"{pod.namespace}/{pod.name}" for pod in pods}

    @property
    def compiled(self) -> Compiled:
        """What verdicts and the packet filter read."""
        return self.explainer.compiled

    def slot(self, pod: str) -> int:
        """A pod's slot in `compiled`, by its name."""
        return self.compiled.slots[self._ids[pod]][0]

    @property
    def isolated(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """direction -> pod's name -> the policies that isolate it; other pods are not isolated."""
        found: dict[str, dict[str, tuple[str, ...]]] = {direction: {} for direction in DIRECTIONS}
        for direction in DIRECTIONS:
            for pod in self.pods:
                serials = self.compiled.group_of(self.slot(pod.name), direction).serials
                if serials:
                    names = tuple(self.compiled.policies[serial].policy.name for serial in serials)
                    found[direction][pod.name] = names
        return found

    def allows(self, src: str, dst: str, proto: str, port: int) -> Verdict:
        """The verdict on a new connection from pod ``src`` to pod ``dst`` (names).

        :param proto: TCP, UDP or SCTP, in any case.
        :raises KeyError: no such pod.
        """
        if src == dst:  # never leaves the pod, and no policy can forbid it
            return Verdict(allowed=True, policies=())
        found = self.explainer.explain_slots(self.slot(src), self.slot(dst), proto.upper(), port)
        for side in found.sides:
            if side.verdict == DENIED:
                names = tuple(_name(policy) for policy in side.isolated_by)
                return Verdict(allowed=False, policies=names, direction=side.direction)
        allowing = [_name(rule.policy) for side in found.sides for rule in side.allowed_by]
        return Verdict(allowed=True, policies=tuple(dict.fromkeys(allowing)))


def _name(policy: str) -> str:
    return policy.rpartition("/")[2]
