"""ClusterNetworkPolicies (policy.networking.k8s.io/v1alpha2), and the v1alpha1 kinds they replace. Pure.

AdminNetworkPolicy is the Admin tier under another name (Allow for Accept), and
BaselineAdminNetworkPolicy the Baseline tier with one object and no Pass. Limits are those of the
published definitions (CRDs).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ztprobe.policy.fields import Where
from ztprobe.policy.labels import parse_label_selector
from ztprobe.policy.model import (
    DIRECTIONS,
    PROTOCOLS,
    AddressBlock,
    DomainPeer,
    NetworkPeer,
    NodePeer,
    Peer,
    PodPeer,
    Policy,
    PolicyRule,
    PortMatch,
)

__all__ = ("parse_admin_policy", "parse_baseline_policy", "parse_cluster_policy")

_SIDES = {"egress": "to", "ingress": "from"}
_LARGEST_PRIORITY = 1000
_MOST_NETWORKS = 25
_NAME_CHARACTERS = 100
_LABEL = r"[A-Za-z0-9](?:[-A-Za-z0-9_]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)+{_LABEL}\.?")


class _Form(NamedTuple):
    # How the kinds differ.
    most: int  # rules, peers, ports
    actions: Mapping[str, str]
    ports_key: str
    port: Callable[[Any, Where], PortMatch]
    domains: bool


def parse_cluster_policy(document: Mapping[str, Any], name: str, where: Where) -> Policy:
    """One ClusterNetworkPolicy.

    :raises UsageError: a field that the API does not have, or a value that it refuses.
    """
    here = where / "spec"
    spec = here.mapping(document.get("spec"), ("tier", "priority", "subject", *DIRECTIONS))
    tier = (here / "tier").one_of(spec.get("tier"), ("Admin", "Baseline"))
    priority = (here / "priority").number(spec.get("priority"), 0, _LARGEST_PRIORITY)
    actions = {word: word for word in ("Accept", "Deny", "Pass")}
    form = _Form(25, actions, "protocols", _protocol_match, True)
    return _policy("ClusterNetworkPolicy", name, tier, priority, spec, form, here)


def parse_admin_policy(document: Mapping[str, Any], name: str, where: Where) -> Policy:
    """One AdminNetworkPolicy.

    :raises UsageError: a field that the API does not have, or a value that it refuses.
    """
    here = where / "spec"
    spec = here.mapping(document.get("spec"), ("priority", "subject", *DIRECTIONS))
    priority = (here / "priority").number(spec.get("priority"), 0, _LARGEST_PRIORITY)
    actions = {"Allow": "Accept", "Deny": "Deny", "Pass": "Pass"}
    form = _Form(100, actions, "ports", _port_match, True)
    return _policy("AdminNetworkPolicy", name, "Admin", priority, spec, form, here)


def parse_baseline_policy(document: Mapping[str, Any], name: str, where: Where) -> Policy:
    """The one BaselineAdminNetworkPolicy.

    :raises UsageError: a field that the API does not have, or a value that it refuses.
    """
    if name != "default":
        raise (where / "metadata" / "name").error(f"is {name!r}, expected 'default'")
    here = where / "spec"
    spec = here.mapping(document.get("spec"), ("subject", *DIRECTIONS))
    form = _Form(100, {"Allow": "Accept", "Deny": "Deny"}, "ports", _port_match, False)
    return _policy("BaselineAdminNetworkPolicy", name, "Baseline", 0, spec, form, here)


def _policy(
    kind: str, name: str, tier: str, priority: int, spec: dict[str, Any], form: _Form, where: Where
) -> Policy:
    rules = {
        direction: tuple(
            _rule(item, direction, form, (where / direction)[n])
            for n, item in enumerate((where / direction).sequence(spec.get(direction), form.most))
        )
        for direction in DIRECTIONS
    }
    return Policy(
        kind=kind,
        name=name,
        namespace=None,
        tier=tier,
        priority=priority,
        subject=_pods(spec.get("subject"), where / "subject"),
        rules={direction: found for direction, found in rules.items() if found},
    )


def _rule(value: Any, direction: str, form: _Form, where: Where) -> PolicyRule:
    side = _SIDES[direction]
    value = where.mapping(value, ("name", "action", side, form.ports_key))
    name = value.get("name") or ""
    if name and len((where / "name").text(name)) > _NAME_CHARACTERS:
        raise (where / "name").error(f"has {len(name)} characters, expected at most {_NAME_CHARACTERS}")
    action = form.actions[(where / "action").one_of(value.get("action"), tuple(form.actions))]
    here = where / side
    parse = _egress_peer if direction == "egress" else _ingress_peer
    peers = tuple(parse(v, form, here[n]) for n, v in enumerate(here.sequence(value.get(side), form.most)))
    if not peers:
        raise here.error("is empty, expected at least one peer")
    here = where / form.ports_key
    ports = None
    if value.get(form.ports_key) is not None:
        items = here.sequence(value[form.ports_key], form.most)
        ports = tuple(form.port(item, here[n]) for n, item in enumerate(items))
        if not ports:
            raise here.error("is empty, expected at least one, or no such field")
        if any(p.name for p in ports) and not all(isinstance(peer, PodPeer) for peer in peers):
            raise here.error("has a port's name, which nodes, networks and domain names do not have")
    if action != "Accept" and any(isinstance(peer, DomainPeer) for peer in peers):
        raise where.error("has domainNames, which only go with the action Accept")
    return PolicyRule(action, peers, ports, name)


def _one_key(value: Any, known: tuple[str, ...], where: Where) -> tuple[str, Any]:
    found = {key: item for key, item in where.mapping(value, known).items() if item is not None}
    if len(found) != 1:
        raise where.error(f"has {len(found)} of {', '.join(known)}, expected one")
    return next(iter(found.items()))


def _pods(value: Any, where: Where) -> PodPeer:
    return _pods_of(*_one_key(value, ("namespaces", "pods"), where), where)


def _pods_of(key: str, item: Any, where: Where) -> PodPeer:
    here = where / key
    if key == "namespaces":
        return PodPeer(namespaces=parse_label_selector(item, here))
    item = here.mapping(item, ("namespaceSelector", "podSelector"))
    if "podSelector" not in item:
        raise (here / "podSelector").error("is missing ({} selects all pods)")
    return PodPeer(
        parse_label_selector(item["podSelector"], here / "podSelector"),
        None,
        parse_label_selector(item.get("namespaceSelector"), here / "namespaceSelector"),
    )


def _ingress_peer(value: Any, form: _Form, where: Where) -> Peer:
    return _pods(value, where)


def _egress_peer(value: Any, form: _Form, where: Where) -> Peer:
    domains = ("domainNames",) if form.domains else ()
    key, item = _one_key(value, ("namespaces", "pods", "nodes", "networks", *domains), where)
    here = where / key
    if key == "nodes":
        return NodePeer(parse_label_selector(item, here))
    if key not in ("networks", "domainNames"):
        return _pods_of(key, item, where)
    items = here.sequence(item, _MOST_NETWORKS)
    if not items:
        raise here.error("is empty, expected at least one")
    if key == "networks":
        return NetworkPeer(tuple(AddressBlock(here[n].network(v)) for n, v in enumerate(items)))
    for number, name in enumerate(items):
        if not _DOMAIN.fullmatch(here[number].text(name)):
            raise here[number].error(f"is {name[:60]!r}, expected a domain name, or *. before one")
    return DomainPeer(tuple(items))


def _protocol_match(value: Any, where: Where) -> PortMatch:
    words = {protocol.lower(): protocol for protocol in PROTOCOLS}
    key, item = _one_key(value, (*words, "destinationNamedPort"), where)
    here = where / key
    if key == "destinationNamedPort":
        return PortMatch(None, name=here.text(item))
    item = here.mapping(item, ("destinationPort",))
    if not item:
        raise here.error("is empty, expected destinationPort")
    here = here / "destinationPort"
    form, item = _one_key(item["destinationPort"], ("number", "range"), here)
    if form == "number":
        number = (here / "number").number(item, 1, 65535)
        return PortMatch(words[key], number, number)
    return PortMatch(words[key], *_range(item, here / "range"))


def _range(value: Any, where: Where, *more: str) -> tuple[int, int]:
    value = where.mapping(value, ("start", "end", *more))
    start = (where / "start").number(value.get("start"), 1, 65535)
    return start, (where / "end").number(value.get("end"), start + 1, 65535)


def _port_match(value: Any, where: Where) -> PortMatch:
    key, item = _one_key(value, ("portNumber", "namedPort", "portRange"), where)
    here = where / key
    if key == "namedPort":
        return PortMatch(None, name=here.text(item))
    protocol = here.mapping(item).get("protocol")
    protocol = "TCP" if protocol is None else (here / "protocol").one_of(protocol, PROTOCOLS)
    if key == "portRange":
        return PortMatch(protocol, *_range(item, here, "protocol"))
    item = here.mapping(item, ("protocol", "port"))
    number = (here / "port").number(item.get("port"), 1, 65535)
    return PortMatch(protocol, number, number)
