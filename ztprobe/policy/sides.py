"""One side of a connection: the policies that select an end, read tier by tier, with what they come to.

What is not known leaves every outcome possible that it could lead to; only where they differ is a
verdict undecidable. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from ztprobe.policy.compiled import Compiled
from ztprobe.policy.compiled_rules import CompiledPolicy, CompiledRule
from ztprobe.policy.labels import NAMESPACE_NAME
from ztprobe.policy.model import AddressBlock, DomainPeer, NodePeer, PodPeer
from ztprobe.policy.selections import Endpoint, NamedPort

__all__ = (
    "ALLOWED",
    "DENIED",
    "NOT_APPLICABLE",
    "UNDECIDABLE",
    "RuleRef",
    "Side",
    "hairpin",
    "judge_side",
    "listed",
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
    passed_by: tuple[RuleRef, ...] = ()  # rules that leave it to the next tier
    isolated_by: tuple[str, ...] = ()  # NetworkPolicies of which none allows it
    missing: tuple[str, ...] = ()  # facts that would decide it


def listed(words: Iterable[str], most: int = 8) -> str:
    """Words with commas, those beyond the first few as a number."""
    found = list(words)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def hairpin(compiled: Compiled, direction: str, slot: int) -> Side:
    """The side of a connection that never leaves its pod."""
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


@dataclass(kw_only=True)
class _Walk:
    # One end's policies for one connection; all ends are slots.
    compiled: Compiled
    direction: str
    selecting: list[CompiledPolicy]
    subject: int
    peer: int
    receiver: int
    protocol: str
    port: int
    # What is possible so far, with the rules that would do it.
    allowing: list[RuleRef] = field(default_factory=list)
    denying: list[RuleRef] = field(default_factory=list)
    passing: list[RuleRef] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    by_default: bool = False  # passes because nothing says otherwise
    isolated_by: tuple[str, ...] = ()
    own_node: bool = False

    def read(self) -> None:
        """Tier by tier, as far as a connection gets."""
        if not self._ordered("Admin"):
            return
        isolating = [one for one in self.selecting if one.policy.tier == "NetworkPolicy"]
        if isolating:
            self._isolating(isolating)
        else:
            self.by_default = self._ordered("Baseline")

    def _matches(self, one: CompiledPolicy, rule: CompiledRule) -> bool | None:
        by_peer = self.compiled.peer_matches(rule, self.peer)
        by_port = self.compiled.port_matches(rule, self.receiver, self.protocol, self.port)
        if by_peer is False or by_port is False:
            return False
        if by_peer is None:
            self.facts.extend(_unknown_peers(self.compiled, rule, self.peer))
        if by_port is None:
            self.facts.append(_unknown_names(self.compiled.selections.endpoints[self.receiver]))
        unsure = one.serial in self.compiled.group_of(self.subject, self.direction).unsure
        if unsure:
            self.facts.append(_unknown_labels(self.compiled, one.subjects, self.subject))
        return True if by_peer and by_port and not unsure else None

    def _ordered(self, tier: str) -> bool:
        # The policies of a tier that go by priority; whether the next tier may be reached.
        onward = False
        policies = [one for one in self.selecting if one.policy.tier == tier]
        for _, alike in groupby(policies, key=lambda one: one.policy.priority):
            taking: list[tuple[str, RuleRef]] = []
            for one in alike:
                passes, taken = self._first_match(one)
                onward |= passes
                if taken is not None:
                    taking.append(taken)
            if len({action for action, _ in taking}) > 1:
                both = " and ".join(str(ref) for _, ref in taking)
                self.facts.append(f"which goes first of {both}, which have the same priority")
            if taking:
                return onward
        return True

    def _first_match(self, one: CompiledPolicy) -> tuple[bool, tuple[str, RuleRef] | None]:
        # Whether a rule of the policy may pass a connection on, and the first that surely takes it.
        passes = False
        for rule in one.rules[self.direction]:
            found = self._matches(one, rule)
            if found is False:
                continue
            ref = _ref(one, self.direction, rule)
            if rule.action == "Pass":
                passes = True
                self.passing.append(ref)
            else:
                (self.allowing if rule.action == "Accept" else self.denying).append(ref)
            if found:
                return passes, (rule.action, ref)
        return passes, None

    def _isolating(self, isolating: list[CompiledPolicy]) -> None:
        sure = False
        for one in isolating:
            for rule in one.rules[self.direction]:
                found = self._matches(one, rule)
                if found is not False:
                    self.allowing.append(_ref(one, self.direction, rule))
                    sure |= found is True
        if self.direction == "ingress":
            own = self.compiled.from_own_node(self.peer, self.subject)
            self.own_node = own is not False
            sure |= own is True
            if own is None:
                ends = self.compiled.selections.endpoints
                source, target = ends[self.peer].name, ends[self.subject].name
                self.facts.append(f"whether {source} runs on {target}'s node (spec.nodeName)")
        if not sure:
            self.isolated_by = tuple(one.policy.id for one in isolating)


def judge_side(
    compiled: Compiled, direction: str, subject: int, peer: int, receiver: int, protocol: str, port: int
) -> Side:
    """What the policies of one end (`subject`) say; all ends are slots.

    :param receiver: the connection's target: one of `subject` and `peer`.
    """
    end = compiled.selections.endpoints[subject]
    selecting = _selecting(compiled, direction, subject)
    if not selecting:
        why = "no policy selects it" if end.pod is not None else "no policy selects what is no pod"
        return Side(direction=direction, end=end, verdict=NOT_APPLICABLE, reason=why)
    walk = _Walk(
        compiled=compiled,
        direction=direction,
        selecting=selecting,
        subject=subject,
        peer=peer,
        receiver=receiver,
        protocol=protocol,
        port=port,
    )
    walk.read()
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
        passed_by=tuple(walk.passing),
        isolated_by=walk.isolated_by,
        missing=tuple(dict.fromkeys(walk.facts)) if verdict == UNDECIDABLE else (),
    )


def _reason(walk: _Walk, verdict: str, direction: str) -> str:
    if verdict == UNDECIDABLE:
        return "it depends on what is not known"
    if verdict == DENIED:
        if walk.denying:
            return f"denied by {walk.denying[0]}"
        policies = listed([policy.removeprefix("NetworkPolicy ") for policy in walk.isolated_by])
        one = "NetworkPolicy" if len(walk.isolated_by) == 1 else "NetworkPolicies"
        return f"isolated by {one} {policies}, without a rule that allows it"
    if walk.allowing:
        return f"allowed by {walk.allowing[0]}"
    if walk.own_node:
        return "from the pod's own node, which NetworkPolicies always let in"
    return "no rule is about it, and no NetworkPolicy isolates it"


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
