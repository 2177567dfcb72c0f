"""Which mistake in the policies denies a connection: the rule that comes closest to allowing it.

Read from the objects that were in force, like the verdict itself. A rule is close if either its ports or
its peers mean the connection; if none is, no rule was written for it.
"""

from __future__ import annotations

from typing import NamedTuple

from analysis.causes.case import Case
from ztprobe.policy.compiled import Compiled
from ztprobe.policy.compiled_rules import CompiledPolicy
from ztprobe.policy.explanation import Explanation
from ztprobe.policy.model import NetworkPeer, PodPeer, PolicyRule, PortMatch
from ztprobe.policy.selections import Endpoint
from ztprobe.policy.sides import DENIED, Side

__all__ = ("Mistake", "mistake_of")


class Mistake(NamedTuple):
    """A cause's id, which policy is to blame in words, and what to do."""

    identifier: str
    words: str
    remedy: str


def mistake_of(case: Case, explained: Explanation, ts_ns: int) -> Mistake:
    """Of a connection that is denied, by what was in force at `ts_ns`."""
    explainer = case.policies.at(ts_ns)
    assert explainer is not None
    compiled = explainer.compiled
    denied = [side for side in explained.sides if side.verdict == DENIED]
    found = [_of_side(case, compiled, explained, side) for side in denied]
    # A rule that was meant for it says more than that there is none.
    return min(found, key=lambda one: _ORDER.index(one.identifier.removeprefix("policy.")))


_ORDER = (
    "denied_by_rule",
    "ip_block_except",
    "wrong_port_range",
    "wrong_port_name",
    "sidecar_port_blocked",
    "wrong_namespace",
    "wrong_label",
    "wrong_port",
    "port_denied_egress",
    "port_denied_ingress",
    "default_deny",
)


def _of_side(case: Case, compiled: Compiled, explained: Explanation, side: Side) -> Mistake:
    if side.denied_by:
        rule = side.denied_by[0]
        return Mistake(
            "policy.denied_by_rule", f"{rule} denies it", f"change {rule}, or let a rule go before it"
        )
    other = explained.target if side.direction == "egress" else explained.source
    what = f"{explained.port}/{explained.protocol}"
    isolating = [one for one in compiled.policies.values() if one.policy.id in side.isolated_by]
    rules = [(one, n) for one in isolating for n in range(len(one.policy.rules.get(side.direction, ())))]
    for one, number in rules:
        if (near := _near(case, compiled, explained, side, one, number, other)) is not None:
            return near
    for one in compiled.policies.values():  # one that was meant for this pod and does not select it
        if one.policy.id not in side.isolated_by and side.direction in one.policy.rules:
            near = _not_selecting(compiled, explained, side, one, other)
            if near is not None:
                return near
    names = _names(side.isolated_by)
    if not rules:
        words = f"{names} isolates {side.end.name} in {side.direction} without any rule"
        return Mistake("policy.default_deny", words, f"add a rule for {side.direction} that allows {what}")
    words = f"no rule for {side.direction} of {side.end.name} allows {what} with {other.name} ({names})"
    return Mistake(
        f"policy.port_denied_{side.direction}", words, f"add a rule for {side.direction} that allows {what}"
    )


def _names(policies: tuple[str, ...]) -> str:
    return ", ".join(policies)


def _near(
    case: Case,
    compiled: Compiled,
    explained: Explanation,
    side: Side,
    one: CompiledPolicy,
    number: int,
    other: Endpoint,
) -> Mistake | None:
    """Whether this rule nearly allows it, and what is off."""
    rule = one.policy.rules[side.direction][number]
    built = one.rules[side.direction][number]
    peer_slot, receiver = _slots(compiled, explained, side)
    by_peer = compiled.peer_matches(built, peer_slot)
    by_port = compiled.port_matches(built, receiver, explained.protocol, explained.port)
    where = f"{one.policy.id} spec.{side.direction}[{number}]"
    if by_peer and not by_port:
        return _off_port(case, explained, side, rule, where)
    if by_port and not by_peer:
        return _off_peer(compiled, explained, rule, where, other)
    return None


def _slots(compiled: Compiled, explained: Explanation, side: Side) -> tuple[int, int]:
    source, target = (_slot(compiled, end) for end in (explained.source, explained.target))
    return (target if side.direction == "egress" else source), target


def _slot(compiled: Compiled, end: Endpoint) -> int:
    return compiled.selections.endpoints.index(end)


def _off_port(case: Case, explained: Explanation, side: Side, rule: PolicyRule, where: str) -> Mistake | None:
    wanted = f"{explained.port}/{explained.protocol}"
    ports = rule.ports or ()
    ranges = [p for p in ports if p.name is None and p.protocol == explained.protocol and p.last > p.first]
    if ranges:
        words = f"{where} allows {ranges[0]}, and not {wanted}"
        return Mistake("policy.wrong_port_range", words, f"let the range in {where} include {explained.port}")
    named = [p for p in ports if p.name is not None]
    if named:
        at = explained.target.name
        words = f"{where} allows the port named {named[0].name!r}, which is not {wanted} at {at}"
        remedy = f"name the port that {explained.target.name} has, or write {explained.port} in {where}"
        return Mistake("policy.wrong_port_name", words, remedy)
    numbers = [p for p in ports if p.protocol in (explained.protocol, None)]
    pod = explained.target.pod
    if (
        pod is not None
        and pod.name in case.sidecars
        and any(_is_applications(case, pod.name, p) for p in numbers)
    ):
        words = f"{where} allows the application's own port, and not {wanted}, where its sidecar listens"
        return Mistake("policy.sidecar_port_blocked", words, f"allow {wanted} in {where}")
    if not ports or any(p.protocol == explained.protocol and p.first == 53 for p in ports):
        return None  # a rule for names, not for this
    words = f"{where} allows {', '.join(map(str, ports))} between these pods, and not {wanted}"
    return Mistake("policy.wrong_port", words, f"allow {wanted} in {where}")


def _is_applications(case: Case, pod: str, port: PortMatch) -> bool:
    """Whether it is the port at which the container behind the sidecar listens."""
    container = case.listeners.get((pod, port.first))
    return container is not None and container != case.sidecars[pod]


def _off_peer(
    compiled: Compiled, explained: Explanation, rule: PolicyRule, where: str, other: Endpoint
) -> Mistake | None:
    for peer in rule.peers or ():
        if isinstance(peer, NetworkPeer) and other.address is not None:
            for block in peer.blocks:
                if block.network.version == other.address.version and other.address in block.network:
                    words = f"{where} allows {block}, which leaves {other.name} ({other.address}) out"
                    return Mistake(
                        "policy.ip_block_except", words, f"take {other.address} out of `except` in {where}"
                    )
    for peer in rule.peers or ():
        if not isinstance(peer, PodPeer) or other.pod is None:
            continue
        if (near := _off_selector(compiled, peer, where, other, explained)) is not None:
            return near
    return None


def _off_selector(
    compiled: Compiled, peer: PodPeer, where: str, other: Endpoint, explained: Explanation
) -> Mistake | None:
    assert other.pod is not None
    in_namespace = (
        peer.namespace == other.pod.namespace
        if peer.namespace is not None
        else compiled.selections.namespace_matches(peer.namespaces, other.pod.namespace) is True
    )
    by_labels = peer.pods.matches(other.pod.labels)
    if by_labels and not in_namespace and str(peer.pods):
        named = peer.namespace if peer.namespace is not None else str(peer.namespaces)
        words = f"{where} means pods in {named}, and {other.name} is in {other.pod.namespace}"
        return Mistake(
            "policy.wrong_namespace", words, f"let the peer of {where} mean namespace {other.pod.namespace}"
        )
    inside, _ = compiled.selections.slots(compiled.selections.id_of(peer))
    if in_namespace and not by_labels and not inside.size:
        words = f"{where} means pods with {peer.pods}, which {other.name} has not, nor any other pod"
        return Mistake(
            "policy.wrong_label", words, f"let the selector of {where} match {other.name}'s labels"
        )
    return None


def _not_selecting(
    compiled: Compiled, explained: Explanation, side: Side, one: CompiledPolicy, other: Endpoint
) -> Mistake | None:
    """A policy with a rule for exactly this that selects no pod at all."""
    inside, maybe = compiled.selections.slots(one.subjects)
    if inside.size or maybe.size or one.policy.kind != "NetworkPolicy" or side.end.pod is None:
        return None
    if one.policy.namespace != side.end.pod.namespace:
        return None
    peer_slot, receiver = _slots(compiled, explained, side)
    for number, built in enumerate(one.rules[side.direction]):
        if compiled.peer_matches(built, peer_slot) and compiled.port_matches(
            built, receiver, explained.protocol, explained.port
        ):
            words = f"{one.policy.id} would allow it in spec.{side.direction}[{number}], and selects no pod"
            remedy = f"let spec.podSelector of {one.policy.id} match {side.end.name}'s labels"
            return Mistake("policy.wrong_label", words, remedy)
    return None
