"""Why a connection is allowed or denied: the verdict of one connection with the rules that decide it.

Reads the compiled form that bulk verdicts read, for one pair of endpoints, and keeps what it met:
the policies that select each end, the rules that match, the facts that are missing. What is not
known leaves every outcome possible that it could lead to; only where they differ is a verdict
undecidable. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from ztprobe.errors import UsageError
from ztprobe.policy.compiled import Compiled, CompiledPolicy, CompiledRule
from ztprobe.policy.labels import NAMESPACE_NAME
from ztprobe.policy.model import (
    DIRECTIONS,
    AddressBlock,
    DomainPeer,
    IPAddress,
    NodePeer,
    Objects,
    PodPeer,
)
from ztprobe.policy.selections import Endpoint, NamedPort

__all__ = (
    "ALLOWED",
    "DENIED",
    "NOT_APPLICABLE",
    "UNDECIDABLE",
    "Explainer",
    "Explanation",
    "RuleRef",
    "Side",
)

ALLOWED, DENIED, NOT_APPLICABLE, UNDECIDABLE = "allowed", "denied", "not applicable", "undecidable"


@dataclass(frozen=True, kw_only=True)
class RuleRef:
    """A rule of a policy."""

    policy: str  # its id: kind and name
    tier: str
    direction: str
    number: int
    action: str
    name: str = ""

    @property
    def field(self) -> str:
        """As ``spec.ingress[0]``."""
        return f"spec.{self.direction}[{self.number}]"

    def __str__(self) -> str:
        return f"{self.policy} {self.field}{f' ({self.name})' if self.name else ''}"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One end of a connection: egress at the source, or ingress at the target."""

    direction: str
    end: Endpoint
    verdict: str
    reason: str
    selected_by: tuple[str, ...] = ()  # ids of the policies with rules for this direction
    allowed_by: tuple[RuleRef, ...] = ()
    denied_by: tuple[RuleRef, ...] = ()  # rules that say so
    isolated_by: tuple[str, ...] = ()  # NetworkPolicies of which none allows it
    missing: tuple[str, ...] = ()  # facts that would decide it


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The verdict on a new connection."""

    source: Endpoint
    target: Endpoint
    protocol: str
    port: int
    verdict: str
    egress: Side
    ingress: Side
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[Side, Side]:
        """Egress, then ingress."""
        return self.egress, self.ingress


class Explainer:
    """Objects, ready to be asked why."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.compiled = Compiled(objects)
        self._pods = {pod.id: pod for pod in objects.pods}
        self._owners: dict[IPAddress, list[str]] = {}
        for pod in objects.pods:
            for address in pod.addresses if not pod.ended else ():
                self._owners.setdefault(address, []).append(pod.id)

    def slots_of(self, end: str) -> tuple[int, ...]:
        """The slots that ``NAMESPACE/POD`` or an address means.

        :raises UsageError: no such pod, a pod that has ended, or an address that two pods have.
        """
        try:
            address = ipaddress.ip_address(end)
        except ValueError:
            return self._slots_of_pod(end)
        owners = self._owners.get(address, [])
        selectable = [pod for pod in owners if not self._pods[pod].host_network]
        if len(selectable) > 1:
            raise UsageError(f"{end}: the address of one pod expected, it is that of {_listed(selectable)}")
        for owner in selectable or owners[:1]:
            slots = self.compiled.slots[owner]
            return tuple(s for s in slots if self.compiled.selections.endpoints[s].address == address)
        return (self.compiled.slot_of_address(address),)

    def _slots_of_pod(self, end: str) -> tuple[int, ...]:
        pod = self._pods.get(end)
        if pod is None:
            if "/" not in end:
                raise UsageError(f"{end}: expected NAMESPACE/POD or an IP address")
            known = _listed(sorted(self._pods)) or "none"
            raise UsageError(f"{end}: no such pod among the objects given; they have {known}")
        if pod.ended:
            raise UsageError(f"{end}: this pod has ended, it has no connections any more")
        return self.compiled.slots[end]

    def explain(self, source: str, target: str, protocol: str, port: int) -> Explanation:
        """The verdict on a new connection, and why.

        :param source: ``NAMESPACE/POD``, or an IP address; so is ``target``.
        :param protocol: TCP, UDP or SCTP.
        :param port: the target's.
        :raises UsageError: see `slots_of`; or the two have no address family in common.
        """
        endpoints = self.compiled.selections.endpoints
        pairs = [
            (s, t)
            for s in self.slots_of(source)
            for t in self.slots_of(target)
            if _one_family(endpoints[s], endpoints[t])
        ]
        if not pairs:
            raise UsageError(f"{source} -> {target}: they have addresses of different families only")
        found = [self.explain_slots(s, t, protocol, port) for s, t in pairs]
        first = found[0]
        if all(one.verdict == first.verdict for one in found):
            return first
        words = ", ".join(f"{one.verdict} over {_family(one)}" for one in found)
        chosen = next((one for one in found if one.verdict in (DENIED, UNDECIDABLE)), first)
        return Explanation(
            **{
                **chosen.__dict__,
                "verdict": UNDECIDABLE,
                "missing": (f"the address family: {words} (name an address)", *chosen.missing),
            }
        )

    def explain_slots(self, source: int, target: int, protocol: str, port: int) -> Explanation:
        """The verdict between two endpoints, by their slots."""
        compiled = self.compiled
        one, other = (compiled.selections.endpoints[slot] for slot in (source, target))
        if (one.pod is not None and one.pod is other.pod) or _loopback(other):
            sides = [_hairpin(compiled, d, s) for d, s in zip(DIRECTIONS, (source, target), strict=True)]
        elif (service := self._service_of(other)) is not None:
            fact = f"which pod the proxy chooses for {service}: policies judge that pod's address, name it"
            sides = [
                Side(
                    direction=d,
                    end=end,
                    verdict=UNDECIDABLE,
                    reason=f"{other.name} is {service}",
                    missing=(fact,),
                )
                for d, end in zip(DIRECTIONS, (one, other), strict=True)
            ]
        else:
            sides = [
                _side(compiled, direction, subject, peer, target, protocol, port)
                for direction, subject, peer in (("egress", source, target), ("ingress", target, source))
            ]
        verdicts = [side.verdict for side in sides]
        verdict = next(
            (word for word in (DENIED, UNDECIDABLE, ALLOWED) if word in verdicts),
            NOT_APPLICABLE,
        )
        missing = tuple(dict.fromkeys(fact for side in sides for fact in side.missing))
        return Explanation(
            source=one,
            target=other,
            protocol=protocol,
            port=port,
            verdict=verdict,
            egress=sides[0],
            ingress=sides[1],
            missing=missing if verdict == UNDECIDABLE else (),
            notes=tuple(_notes(one, other)),
        )

    def _service_of(self, end: Endpoint) -> str | None:
        if end.pod is not None or end.address is None:
            return None
        for service in self.objects.services:
            if end.address in service.addresses:
                return f"the address of Service {service.namespace}/{service.name}"
        return None


def _one_family(one: Endpoint, other: Endpoint) -> bool:
    if one.address is None or other.address is None:
        return True
    return one.address.version == other.address.version


def _family(found: Explanation) -> str:
    address = found.source.address or found.target.address
    return "any family" if address is None else f"IPv{address.version}"


def _listed(words: list[str], most: int = 8) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _notes(one: Endpoint, other: Endpoint) -> Iterable[str]:
    for end in (one, other):
        if end.pod is None and end.address is not None:
            if not _loopback(end):
                yield f"{end.name} is no pod of the objects given: taken as an address outside the cluster"
        elif end.pod is not None and end.pod.host_network:
            yield f"{end.name} uses its node's network: no policy selects it, as a peer only networks mean it"


def _loopback(end: Endpoint) -> bool:
    return end.pod is None and end.address is not None and end.address.is_loopback


def _hairpin(compiled: Compiled, direction: str, slot: int) -> Side:
    selecting = _selecting(compiled, direction, slot)
    return Side(
        direction=direction,
        end=compiled.selections.endpoints[slot],
        verdict=ALLOWED if selecting else NOT_APPLICABLE,
        reason="a pod can always reach itself" if selecting else "no policy selects it",
        selected_by=tuple(one.policy.id for one in selecting),
    )


def _selecting(compiled: Compiled, direction: str, slot: int) -> list[CompiledPolicy]:
    return [compiled.policies[serial] for serial in compiled.group_of(slot, direction).serials]


@dataclass
class _Walk:
    # What is possible so far, with the rules that would do it.
    allowing: list[RuleRef] = field(default_factory=list)
    denying: list[RuleRef] = field(default_factory=list)
    passing: list[RuleRef] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    by_default: bool = False  # passes because nothing says otherwise
    isolated_by: tuple[str, ...] = ()
    own_node: bool = False


def _side(
    compiled: Compiled, direction: str, subject: int, peer: int, receiver: int, protocol: str, port: int
) -> Side:
    end = compiled.selections.endpoints[subject]
    selecting = _selecting(compiled, direction, subject)
    if not selecting:
        why = "no policy selects it" if end.pod is not None else "no policy selects what is no pod"
        return Side(direction=direction, end=end, verdict=NOT_APPLICABLE, reason=why)
    walk = _walk(compiled, direction, selecting, subject, peer, receiver, protocol, port)
    may_pass = bool(walk.allowing) or walk.by_default or walk.own_node
    may_drop = bool(walk.denying or walk.isolated_by)
    verdict = UNDECIDABLE if may_pass and may_drop else DENIED if may_drop else ALLOWED
    return Side(
        direction=direction,
        end=end,
        verdict=verdict,
        reason=_reason(walk, verdict, direction),
        selected_by=tuple(one.policy.id for one in selecting),
        allowed_by=tuple(walk.allowing),
        denied_by=tuple(walk.denying),
        isolated_by=walk.isolated_by,
        missing=tuple(dict.fromkeys(walk.facts)) if verdict == UNDECIDABLE else (),
    )


def _reason(walk: _Walk, verdict: str, direction: str) -> str:
    if verdict == UNDECIDABLE:
        return "it depends on what is not known"
    if verdict == DENIED:
        if walk.denying:
            return f"denied by {walk.denying[0]}"
        policies = _listed([policy.removeprefix("NetworkPolicy ") for policy in walk.isolated_by])
        one = "NetworkPolicy" if len(walk.isolated_by) == 1 else "NetworkPolicies"
        return f"isolated by {one} {policies}, without a rule that allows it"
    if walk.allowing:
        return f"allowed by {walk.allowing[0]}"
    if walk.own_node:
        return "from the pod's own node, which NetworkPolicies always let in"
    return "no rule is about it, and no NetworkPolicy isolates it"


def _walk(
    compiled: Compiled,
    direction: str,
    selecting: list[CompiledPolicy],
    subject: int,
    peer: int,
    receiver: int,
    protocol: str,
    port: int,
) -> _Walk:
    unsure = compiled.group_of(subject, direction).unsure
    walk = _Walk()

    def match(one: CompiledPolicy, rule: CompiledRule) -> bool | None:
        by_peer = compiled.peer_matches(rule, peer)
        by_port = compiled.port_matches(rule, receiver, protocol, port)
        if by_peer is False or by_port is False:
            return False
        if by_peer is None:
            walk.facts.extend(_unknown_peers(compiled, rule, peer))
        if by_port is None:
            walk.facts.append(
                f"the names of {compiled.selections.endpoints[receiver].name}'s container ports"
            )
        if one.serial in unsure:
            walk.facts.append(_unknown_labels(compiled, one.subjects, subject))
        return True if by_peer and by_port and one.serial not in unsure else None

    def ordered(tier: str) -> bool:
        # Whether the next tier may be reached.
        onward = False
        policies = [one for one in selecting if one.policy.tier == tier]
        for _, alike in groupby(policies, key=lambda one: one.policy.priority):
            taking: list[tuple[str, RuleRef]] = []
            for one in alike:
                for rule in one.rules[direction]:
                    found = match(one, rule)
                    if found is False:
                        continue
                    ref = _ref(one, direction, rule)
                    if rule.action == "Pass":
                        onward = True
                        walk.passing.append(ref)
                    else:
                        (walk.allowing if rule.action == "Accept" else walk.denying).append(ref)
                    if found:
                        taking.append((rule.action, ref))
                        break
            if len({action for action, _ in taking}) > 1:
                both = " and ".join(str(ref) for _, ref in taking)
                walk.facts.append(f"which goes first of {both}, which have the same priority")
            if taking:
                return onward
        return True

    if not ordered("Admin"):
        return walk
    isolating = [one for one in selecting if one.policy.tier == "NetworkPolicy"]
    if not isolating:
        walk.by_default = ordered("Baseline")
        return walk
    sure = False
    for one in isolating:
        for rule in one.rules[direction]:
            found = match(one, rule)
            if found is not False:
                walk.allowing.append(_ref(one, direction, rule))
                sure |= found is True
    if direction == "ingress" and (own := compiled.from_own_node(peer, subject)) is not False:
        walk.own_node = True
        if own:
            sure = True
        else:
            source, target = (compiled.selections.endpoints[slot].name for slot in (peer, subject))
            walk.facts.append(f"whether {source} runs on {target}'s node (spec.nodeName)")
    if not sure:
        walk.isolated_by = tuple(one.policy.id for one in isolating)
    return walk


def _ref(one: CompiledPolicy, direction: str, rule: CompiledRule) -> RuleRef:
    return RuleRef(
        policy=one.policy.id,
        tier=one.policy.tier,
        direction=direction,
        number=rule.number,
        action=rule.action,
        name=one.policy.rules[direction][rule.number].name,
    )


def _unknown_peers(compiled: Compiled, rule: CompiledRule, slot: int) -> Iterable[str]:
    for number in rule.peers or ():
        if compiled.selections.holds(number, slot) is None:
            yield _unknown_labels(compiled, number, slot)


def _unknown_labels(compiled: Compiled, number: int, slot: int) -> str:
    key, end = compiled.selections.key_of(number), compiled.selections.endpoints[slot]
    if isinstance(key, PodPeer):
        assert end.pod is not None
        asked = sorted({one.key for one in key.namespaces.requirements} - {NAMESPACE_NAME})
        return f"the labels of namespace {end.pod.namespace} ({', '.join(asked)})"
    if isinstance(key, AddressBlock):
        return f"the address of {end.name} (status.podIP)"
    if isinstance(key, DomainPeer):
        return f"whether {', '.join(key.names)} resolves to {end.name}"
    if isinstance(key, NodePeer):
        return f"which nodes match {key.nodes} and have {end.name}'s address"
    assert isinstance(key, NamedPort)
    return _unknown_names(end)


def _unknown_names(end: Endpoint) -> str:
    return f"the names of {end.name}'s container ports"
