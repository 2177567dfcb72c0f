"""What in policies is surely a mistake: selectors and names that match nothing, rules nobody reads. Pure.

Only what the objects prove: where no pod is given, or a namespace's labels are not known, nothing is
said about selectors that need them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ztprobe.policy.bulk import ALLOWED, DENIED, NOT_APPLICABLE, Verdicts
from ztprobe.policy.compiled import Compiled
from ztprobe.policy.compiled_rules import CompiledPolicy
from ztprobe.policy.model import PROTOCOLS, ClusterPod, Objects, PodPeer, PolicyRule

__all__ = ("Finding", "check")

_OUTSIDE = ipaddress.ip_address("192.0.2.1")  # TEST-NET-1: nobody's
# Ports of a mesh's own, to which its proxies send what was meant for the application's.
_LINKERD = (4143, "Linkerd's proxies connect to it", "https://linkerd.io/2/common-errors/network-policy")
_AMBIENT = (
    15008,
    "Istio's ztunnel connects to it",
    "https://istio.io/latest/docs/ambient/usage/networkpolicy",
)
_AMBIENT_LABEL = ("istio.io/dataplane-mode", "ambient")
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One mistake."""

    kind: str
    where: str  # the policy or pod, and the field
    what: str


def check(objects: Objects) -> list[Finding]:
    """The mistakes, in the order of the policies."""
    verdicts = Verdicts(objects)
    found: list[Finding] = []
    for one in verdicts.compiled.policies.values():
        found += _unread(one)
        if objects.pods:
            found += _subjects(verdicts.compiled, objects, one)
            for direction, rules in one.policy.rules.items():
                for number, rule in enumerate(rules):
                    field = f"{one.policy.id} spec.{direction}[{number}]"
                    found += _peers(verdicts.compiled, objects, rule, field)
                    found += _port_names(verdicts.compiled, objects, one, direction, number, field)
    if objects.pods:
        found += _dns(verdicts, objects)
        found += _sidecars(verdicts, objects)
    return list(dict.fromkeys(found))


def _unread(one: CompiledPolicy) -> Iterator[Finding]:
    for direction in one.policy.unread:
        yield Finding(
            kind="rules-not-read",
            where=f"{one.policy.id} spec.{direction}",
            what=f"has rules, but policyTypes leaves {direction.capitalize()} out, so they mean nothing",
        )


def _subjects(compiled: Compiled, objects: Objects, one: CompiledPolicy) -> Iterator[Finding]:
    hosts = _host_pods(compiled, objects, one.policy.subject)
    key = "spec.podSelector" if one.policy.kind == "NetworkPolicy" else "spec.subject"
    if hosts:
        yield Finding(
            kind="host-network-ignored",
            where=f"{one.policy.id} {key}",
            what=f"does not apply to {_listed(hosts)}: a host-network pod is its node to the network",
        )
        return
    inside, maybe = compiled.selections.slots(one.subjects)
    why = _nothing_there(compiled, objects, one.policy.subject)
    if why is not None and not inside.size and not maybe.size:
        what = f"selects nothing: {why}"
        yield Finding(kind="selects-nothing", where=f"{one.policy.id} {key}", what=what)


def _peers(compiled: Compiled, objects: Objects, rule: PolicyRule, field: str) -> Iterator[Finding]:
    for peer in rule.peers or ():
        if not isinstance(peer, PodPeer):
            continue
        inside, maybe = compiled.selections.slots(compiled.selections.id_of(peer))
        if inside.size or maybe.size:
            continue
        hosts = _host_pods(compiled, objects, peer)
        if hosts:
            yield Finding(
                kind="host-network-ignored",
                where=field,
                what=f"means host-network pods only ({_listed(hosts)}), which no selector means: use ipBlock",
            )
        elif (why := _nothing_there(compiled, objects, peer)) is not None:
            what = f"has a peer that means nothing: {why}"
            yield Finding(kind="selects-nothing", where=field, what=what)


def _port_names(
    compiled: Compiled, objects: Objects, one: CompiledPolicy, direction: str, number: int, field: str
) -> Iterator[Finding]:
    rule = one.rules[direction][number]
    names = {port.name: port.protocol for port in rule.ports or () if port.receivers is not None}
    if not names:
        return
    sets = [one.subjects] if direction == "ingress" else rule.peers
    for name in names:
        receivers = None if sets is None else _pods_in(compiled, sets)
        if receivers is None:
            receivers = [pod for pod in objects.pods if not pod.ended]
        if not receivers or any(pod.named_ports is None for pod in receivers):
            continue
        wanted = {p.protocol for p in rule.ports or () if p.name == name}
        there = [
            (protocol, known)
            for pod in receivers
            for protocol, known, _ in pod.named_ports or ()
            if not pod.host_network
        ]
        if not any(known == name and protocol in wanted for protocol, known in there):
            have = ", ".join(sorted({f"{known}/{protocol}" for protocol, known in there})) or "none"
            yield Finding(
                kind="port-name-unknown",
                where=field,
                what=f"names the port {name!r}, which no pod that it is about has (they have {have})",
            )


def _pods_in(compiled: Compiled, sets: tuple[int, ...] | list[int]) -> list[ClusterPod]:
    slots = {slot for number in sets for slot in compiled.selections.slots(number)[0].tolist()}
    pods = [compiled.selections.endpoints[slot].pod for slot in sorted(slots)]
    return [pod for pod in pods if pod is not None]


def _dns(verdicts: Verdicts, objects: Objects) -> Iterator[Finding]:
    compiled = verdicts.compiled
    targets = [slot for slots in compiled.slots.values() for slot in slots]
    targets.append(compiled.slot_of_address(_OUTSIDE))
    seen: set[tuple[int, ...]] = set()
    for pod in objects.pods:
        for slot in compiled.slots.get(pod.id, ())[:1]:
            serials = compiled.group_of(slot, "egress").serials
            if serials in seen or not any(_rule_for_dns(compiled, serials, p) for p in ("UDP", "TCP")):
                continue
            seen.add(serials)
            codes = {
                protocol: verdicts.verdicts(
                    np.full(len(targets), slot),
                    np.array(targets),
                    np.full(len(targets), PROTOCOLS.index(protocol)),
                    np.full(len(targets), 53),
                )
                for protocol in ("UDP", "TCP")
            }
            for one, other in (("UDP", "TCP"), ("TCP", "UDP")):
                half = (codes[one] == ALLOWED) & (codes[other] == DENIED)
                if half.any() and (rule := _rule_for_dns(compiled, serials, one)) is not None:
                    why = (
                        "answers that do not fit a datagram come back over TCP"
                        if one == "UDP"
                        else "resolvers ask over UDP first"
                    )
                    yield Finding(
                        kind="dns-half",
                        where=rule,
                        what=f"allows DNS over {one} only; {why}: allow 53/{other} too",
                    )


def _rule_for_dns(compiled: Compiled, serials: tuple[int, ...], protocol: str) -> str | None:
    for serial in serials:
        one = compiled.policies[serial]
        for rule in one.rules["egress"]:
            if rule.action == "Accept" and any(
                p.protocol == protocol and p.first == p.last == 53 for p in rule.ports or ()
            ):
                return f"{one.policy.id} spec.egress[{rule.number}]"
    return None


def _sidecars(verdicts: Verdicts, objects: Objects) -> Iterator[Finding]:
    compiled = verdicts.compiled
    sources = [slots[0] for slots in compiled.slots.values()]
    sources.append(compiled.slot_of_address(_OUTSIDE))

    def reached(target: int, protocol: str, port: int) -> bool:
        others = np.array([slot for slot in sources if slot != target])
        codes = verdicts.verdicts(
            others,
            np.full(len(others), target),
            np.full(len(others), PROTOCOLS.index(protocol)),
            np.full(len(others), port),
        )
        return bool(np.isin(codes, (ALLOWED, NOT_APPLICABLE)).any())

    ambient = {one.name for one in objects.namespaces if _AMBIENT_LABEL in one.labels.items()}
    for pod in objects.pods:
        slots = compiled.slots.get(pod.id, ())[:1]
        needed = _needed_ports(pod, pod.namespace in ambient)
        if not slots or not needed or not compiled.group_of(slots[0], "ingress").serials:
            continue
        rest = {one for one in pod.container_ports if one[0] in PROTOCOLS and one not in needed}
        if any(reached(slots[0], *one) for one in rest):
            for (protocol, port), why in needed.items():
                if not reached(slots[0], protocol, port):
                    what = f"no rule for ingress allows {port}/{protocol}, and others are open: {why}"
                    yield Finding(kind="sidecar-port", where=f"Pod {pod.id}", what=what)


def _needed_ports(pod: ClusterPod, ambient: bool) -> dict[tuple[str, int], str]:
    # (protocol, port) -> why it has to be reached.
    needed: dict[tuple[str, int], str] = {}
    for name, ports in pod.sidecars:
        needed |= {one: f"its sidecar {name} listens there" for one in ports if one[0] in PROTOCOLS}
        if name == "linkerd-proxy":
            port, why, source = _LINKERD
            needed["TCP", port] = f"{why} ({source})"
    if ambient or _AMBIENT_LABEL in pod.labels.items():
        port, why, source = _AMBIENT
        needed["TCP", port] = f"{why} ({source})"
    return needed


def _host_pods(compiled: Compiled, objects: Objects, peer: PodPeer) -> list[ClusterPod]:
    return [pod for pod in objects.pods if pod.host_network and _by_labels(compiled, peer, pod)]


def _by_labels(compiled: Compiled, peer: PodPeer, pod: ClusterPod) -> bool:
    if not peer.pods.matches(pod.labels):
        return False
    if peer.namespace is not None:
        return peer.namespace == pod.namespace
    return compiled.selections.namespace_matches(peer.namespaces, pod.namespace) is True


def _listed(pods: list[ClusterPod]) -> str:
    more = f" and {len(pods) - _SHOWN} more" if len(pods) > _SHOWN else ""
    return ", ".join(pod.id for pod in pods[:_SHOWN]) + more


def _nothing_there(compiled: Compiled, objects: Objects, peer: PodPeer) -> str | None:
    # Why nothing matches; None: nobody knows, because the objects do not reach so far.
    inhabited = {pod.namespace for pod in objects.pods}
    if peer.namespace is not None:
        meant = {peer.namespace}
    else:
        known = inhabited | {one.name for one in objects.namespaces}
        meant = {n for n in known if compiled.selections.namespace_matches(peer.namespaces, n) is not False}
        # Every cluster has it: where it is given, all namespaces are, as kubectl lists them.
        if not meant and any(one.name == "kube-system" for one in objects.namespaces):
            return f"no namespace has {peer.namespaces}"
    if not meant & inhabited:
        return None
    where = (
        f"in namespace {', '.join(sorted(meant)[:_SHOWN])}" if len(meant) <= _SHOWN else "in its namespaces"
    )
    return f"no pod {where} has {peer.pods}"
