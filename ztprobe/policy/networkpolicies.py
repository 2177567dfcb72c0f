"""NetworkPolicies (networking.k8s.io/v1) as `ztprobe.policy.model.Policy`, defaults filled in. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztprobe.label_selectors import EVERYTHING
from ztprobe.policy.fields import Where
from ztprobe.policy.labels import parse_label_selector
from ztprobe.policy.model import (
    DIRECTIONS,
    PROTOCOLS,
    AddressBlock,
    NetworkPeer,
    Peer,
    PodPeer,
    Policy,
    PolicyRule,
    PortMatch,
)

__all__ = ("parse_network_policy",)

_SIDES = {"egress": "to", "ingress": "from"}


def parse_network_policy(document: Mapping[str, Any], name: str, namespace: str, where: Where) -> Policy:
    """One NetworkPolicy.

    :param where: the document; names the policy.
    :raises UsageError: a field that the API does not have, or a value that it refuses.
    """
    here = where / "spec"
    spec = here.mapping(document.get("spec"), ("podSelector", "policyTypes", *DIRECTIONS))
    types = (here / "policyTypes").sequence(spec.get("policyTypes"))
    for kind in types:
        (here / "policyTypes").one_of(kind, ("Ingress", "Egress"))
    rules = {
        direction: tuple(
            _rule(item, direction, namespace, (here / direction)[n])
            for n, item in enumerate((here / direction).sequence(spec.get(direction)))
        )
        for direction in DIRECTIONS
    }
    if not types:  # what the API server writes instead: egress only where there is an egress rule
        types = ["Ingress", *(["Egress"] if rules["egress"] else [])]
    return Policy(
        kind="NetworkPolicy",
        name=name,
        namespace=namespace,
        tier="NetworkPolicy",
        priority=0,
        subject=PodPeer(parse_label_selector(spec.get("podSelector"), here / "podSelector"), namespace),
        rules={d: rules[d] for d in DIRECTIONS if d.capitalize() in types},
        unread=tuple(d for d in DIRECTIONS if rules[d] and d.capitalize() not in types),
    )


def _rule(value: Any, direction: str, namespace: str, where: Where) -> PolicyRule:
    side = _SIDES[direction]
    value = where.mapping(value, (side, "ports"))
    peers, ports = where / side, where / "ports"
    return PolicyRule(
        "Accept",
        tuple(_peer(v, namespace, peers[n]) for n, v in enumerate(peers.sequence(value.get(side)))) or None,
        tuple(_port(v, ports[n]) for n, v in enumerate(ports.sequence(value.get("ports")))) or None,
    )


def _peer(value: Any, namespace: str, where: Where) -> Peer:
    value = where.mapping(value, ("podSelector", "namespaceSelector", "ipBlock"))
    value = {key: item for key, item in value.items() if item is not None}
    if not value:
        raise where.error("is empty, expected podSelector, namespaceSelector or ipBlock")
    if "ipBlock" in value:
        if len(value) > 1:
            raise where.error("has ipBlock beside another selector, expected one of them")
        return NetworkPeer((_block(value["ipBlock"], where / "ipBlock"),))
    pods = parse_label_selector(value.get("podSelector"), where / "podSelector")
    if "namespaceSelector" not in value:
        return PodPeer(pods, namespace)
    selector = parse_label_selector(value["namespaceSelector"], where / "namespaceSelector")
    return PodPeer(pods, None, selector) if selector.requirements else PodPeer(pods, None, EVERYTHING)


def _block(value: Any, where: Where) -> AddressBlock:
    value = where.mapping(value, ("cidr", "except"))
    network = (where / "cidr").network(value.get("cidr"))
    excepted = []
    here = where / "except"
    for number, item in enumerate(here.sequence(value.get("except"))):
        inner = here[number].network(item)
        within = inner.version == network.version and inner.prefixlen > network.prefixlen
        if not within or inner.network_address not in network:
            raise here[number].error(f"is {inner}, expected a smaller network within {network}")
        excepted.append(inner)
    return AddressBlock(network, tuple(excepted))


def _port(value: Any, where: Where) -> PortMatch:
    value = where.mapping(value, ("protocol", "port", "endPort"))
    protocol = value.get("protocol")
    if protocol is None:
        protocol = "TCP"
    (where / "protocol").one_of(protocol, PROTOCOLS)
    port, end = value.get("port"), value.get("endPort")
    if isinstance(port, str):
        if end is not None:
            raise (where / "endPort").error("stands beside a port's name, expected a number there")
        return PortMatch(protocol, name=(where / "port").text(port))
    if port is None:
        if end is not None:
            raise (where / "endPort").error("needs a port beside it")
        return PortMatch(protocol)
    if isinstance(port, bool) or not isinstance(port, int):
        raise (where / "port").error(f"is {port!r}, expected a number or a name")
    first = (where / "port").number(port, 1, 65535)
    return PortMatch(protocol, first, first if end is None else (where / "endPort").number(end, first, 65535))
