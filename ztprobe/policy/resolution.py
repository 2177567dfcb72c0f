"""NetworkPolicy documents of the local runtime: read, and resolved against its pods. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ztprobe.errors import UsageError
from ztprobe.policy.fields import Where
from ztprobe.policy.labels import NAMESPACE_NAME
from ztprobe.policy.model import ClusterPod, Namespace, NetworkPeer, Objects, Policy, PolicyRule
from ztprobe.policy.networkpolicies import parse_network_policy
from ztprobe.policy.rules import PolicyPod, Ruleset

__all__ = ("compile_policies",)

_SHOWN = 3  # pods in a message


def compile_policies(
    policies: Sequence[Mapping[str, Any]],
    pods: Sequence[PolicyPod],
    namespaces: Mapping[str, Mapping[str, str]] | None = None,
    *,
    check_port_names: bool = True,
) -> Ruleset:
    """Resolve NetworkPolicy documents against the pods they are to act on.

    :param namespaces: name -> labels, of those that have any besides their names.
    :param check_port_names: refuse the name of a port that no pod has, which an API server takes.
    :raises UsageError: a field that the API does not have, of the wrong shape, or with a port name that
        no pod has; names the policy and the field.
    """
    names = [pod.name for pod in pods]
    if len(set(names)) != len(names):
        raise ValueError(f"pod names repeat: {sorted(names)}")
    labels: dict[str, Mapping[str, str]] = {pod.namespace: {} for pod in pods} | dict(namespaces or {})
    parsed = [_parse(document) for document in policies]
    ruleset = Ruleset(
        tuple(pods),
        Objects(
            pods=tuple(_pod(pod) for pod in pods),
            namespaces=tuple(
                Namespace(name=name, labels={**found, NAMESPACE_NAME: name}) for name, found in labels.items()
            ),
            policies=tuple(parsed),
        ),
    )
    for one in parsed if check_port_names else ():
        _check_port_names(ruleset, one)
    return ruleset


def _parse(document: Mapping[str, Any]) -> Policy:
    metadata = document.get("metadata") or {}
    name = str(metadata.get("name", "(no name)"))
    if document.get("kind") != "NetworkPolicy" or document.get("apiVersion") != "networking.k8s.io/v1":
        kind = f"{document.get('apiVersion')} {document.get('kind')}"
        raise UsageError(f"NetworkPolicy {name}: is {kind}, expected networking.k8s.io/v1 NetworkPolicy")
    where = Where(f"NetworkPolicy {name}")
    return parse_network_policy(document, name, str(metadata.get("namespace") or "default"), where)


def _pod(pod: PolicyPod) -> ClusterPod:
    return ClusterPod(
        name=pod.name,
        namespace=pod.namespace,
        labels=pod.labels,
        addresses=(ipaddress.ip_address(pod.address),),
        named_ports=frozenset((protocol, name, number) for (protocol, name), number in pod.ports.items()),
    )


def _check_port_names(ruleset: Ruleset, policy: Policy) -> None:
    # A rule whose port nobody has would allow nothing, and nobody would learn why.
    selections = ruleset.compiled.selections
    subjects = selections.id_of(policy.subject)
    selected = [pod for pod in ruleset.pods if selections.holds(subjects, ruleset.slot(pod.name))]
    for direction, rules in policy.rules.items() if selected else ():
        for number, rule in enumerate(rules):
            receivers = selected if direction == "ingress" else list(_peers(ruleset, rule))
            for place, port in enumerate(rule.ports or ()):
                if port.name is None or not receivers:
                    continue
                if all((port.protocol, port.name) not in pod.ports for pod in receivers):
                    keys = ("spec", direction, number, "ports", place, "port")
                    have = _listed([f"{pod.name} has {_port_names(pod)}" for pod in receivers])
                    raise Where(f"NetworkPolicy {policy.name}", keys).error(
                        f"is {port.name!r}, and no pod that it is about"
                        f" has a {port.protocol} port of that name: {have}"
                    )


def _peers(ruleset: Ruleset, rule: PolicyRule) -> Iterator[PolicyPod]:
    selections = ruleset.compiled.selections
    for pod in ruleset.pods:
        slot = ruleset.slot(pod.name)
        keys = [b for p in rule.peers or () for b in (p.blocks if isinstance(p, NetworkPeer) else (p,))]
        if rule.peers is None or any(selections.holds(selections.id_of(key), slot) for key in keys):
            yield pod


def _port_names(pod: PolicyPod) -> str:
    return ", ".join(f"{name}/{protocol}" for protocol, name in sorted(pod.ports)) or "none"


def _listed(items: Sequence[str]) -> str:
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more
