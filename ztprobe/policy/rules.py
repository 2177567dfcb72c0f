"""What policies come to for the pods at hand: rules on addresses, and the verdict on a connection. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ("DIRECTIONS", "Isolation", "PolicyPod", "Rule", "Ruleset", "Verdict")

DIRECTIONS = ("egress", "ingress")


@dataclass(frozen=True, kw_only=True)
class PolicyPod:
    """A pod as policies see it."""

    name: str  # unique among the pods given
    namespace: str
    labels: Mapping[str, str]
    address: str  # IPv4
    # containerPort names: (protocol, name) -> number
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, order=True)
class Rule:
    """What one policy allows one pod, in one direction, towards the peers at ``addresses``."""

    policy: str
    addresses: tuple[str, ...] | None  # None: any peer, of the cluster or not
    protocol: str | None  # None: every protocol
    port: int | None  # the receiver's; None: every port of the protocol

    def matches(self, peer: str, protocol: str, port: int) -> bool:
        """Whether this rule allows ``protocol``/``port`` with the peer at that address."""
        return (
            (self.addresses is None or peer in self.addresses)
            and self.protocol in (None, protocol)
            and self.port in (None, port)
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a new connection passes, and the policies that decided.

    Allowed: those with a rule for it (none: no policy selects either pod).
    Denied: those that isolate a pod in the direction that failed.
    """

    allowed: bool
    policies: tuple[str, ...]
    direction: str | None = None  # that failed: egress (at the sender) or ingress (at the receiver)


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """A pod in a direction in which at least one policy selects it."""

    policies: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, kw_only=True)
class Ruleset:
    """Policies resolved against pods."""

    pods: tuple[PolicyPod, ...]
    # direction -> pod name -> its isolation; pods missing here are not isolated
    isolated: Mapping[str, Mapping[str, Isolation]]

    def allows(self, src: str, dst: str, proto: str, port: int) -> Verdict:
        """The verdict on a new connection from pod ``src`` to pod ``dst`` (names).

        :param proto: TCP or UDP, in any case.
        :raises KeyError: no such pod.
        """
        pods = {pod.name: pod for pod in self.pods}
        source, target = pods[src], pods[dst]
        if source == target:  # never leaves the pod, and no policy can forbid it
            return Verdict(allowed=True, policies=())
        reasons: list[str] = []
        for direction, pod, peer in zip(DIRECTIONS, (source, target), (target, source), strict=True):
            isolation = self.isolated[direction].get(pod.name)
            if isolation is None:
                continue
            allowing = [r.policy for r in isolation.rules if r.matches(peer.address, proto.upper(), port)]
            if not allowing:
                return Verdict(allowed=False, policies=isolation.policies, direction=direction)
            reasons += allowing
        return Verdict(allowed=True, policies=tuple(dict.fromkeys(reasons)))
