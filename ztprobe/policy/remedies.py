"""The rule that is missing, as an object that ``kubectl apply`` takes.

For a pod that NetworkPolicies isolate, one more NetworkPolicy: they add up, so it allows this connection
and takes nothing away. Against a rule that denies, a rule of the same kind that goes before it. The
selectors name what the pod keeps when it is replaced; of labels that a controller gives each pod
anew, none. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ztprobe.policy.explanation import Explanation
from ztprobe.policy.labels import NAMESPACE_NAME
from ztprobe.policy.model import Objects
from ztprobe.policy.selections import Endpoint
from ztprobe.policy.sides import DENIED, Side

__all__ = ("lasting_labels", "missing_rules")

# Which controllers give to each pod, or to each revision of its template.
_PASSING_LABELS = (
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "controller-uid",
    "job-name",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
)
_NAME_CHARACTERS = 63


def lasting_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that a pod's successor will have too."""
    return {key: value for key, value in sorted(labels.items()) if key not in _PASSING_LABELS}


def missing_rules(objects: Objects, found: Explanation) -> list[dict[str, Any]]:
    """The objects that would let a denied connection pass: one for each side that denies it.

    Empty where no object can: against a rule of the highest precedence only its change helps.
    """
    documents = []
    for side, other in ((found.egress, found.target), (found.ingress, found.source)):
        if side.verdict != DENIED or (not other.selectable and other.address is None):
            continue
        if side.denied_by:
            document = _before(objects, side, other, found)
            if document is not None:
                documents.append(document)
        else:
            documents.append(_network_policy(side, other, found))
    return documents


def _network_policy(side: Side, other: Endpoint, found: Explanation) -> dict[str, Any]:
    pod = side.end.pod
    assert pod is not None  # nothing else is isolated
    egress = side.direction == "egress"
    rule = {
        "to" if egress else "from": [_peer(pod.namespace, other)],
        "ports": [{"protocol": found.protocol, "port": found.port}],
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": _name(side, found), "namespace": pod.namespace},
        "spec": {
            "podSelector": _selector(pod.labels),
            "policyTypes": [side.direction.capitalize()],
            side.direction: [rule],
        },
    }


def _selector(labels: Mapping[str, str]) -> dict[str, Any]:
    lasting = lasting_labels(labels)
    return {"matchLabels": lasting} if lasting else {}


def _peer(namespace: str, other: Endpoint) -> dict[str, Any]:
    if other.pod is None or other.pod.host_network:
        return {"ipBlock": {"cidr": _cidr(other)}}
    peer: dict[str, Any] = {}
    if other.pod.namespace != namespace:
        peer["namespaceSelector"] = {"matchLabels": {NAMESPACE_NAME: other.pod.namespace}}
    return peer | {"podSelector": _selector(other.pod.labels)}


def _cidr(end: Endpoint) -> str:
    assert end.address is not None
    return f"{end.address}/{end.address.max_prefixlen}"


def _before(objects: Objects, side: Side, other: Endpoint, found: Explanation) -> dict[str, Any] | None:
    denied_by = next((one for one in objects.policies if one.id == side.denied_by[0].policy), None)
    if denied_by is None or denied_by.priority == 0 or side.end.pod is None:
        return None
    cluster = denied_by.kind == "ClusterNetworkPolicy"
    pod = side.end.pod
    if other.pod is None or other.pod.host_network:
        if side.direction == "ingress":
            return None  # where these kinds know no addresses
        peer: dict[str, Any] = {"networks": [_cidr(other)]}
    else:
        peer = {"pods": _namespaced(other.pod.namespace, other.pod.labels)}
    port = {"protocol": found.protocol, "port": found.port}
    ports = (
        {"protocols": [{found.protocol.lower(): {"destinationPort": {"number": found.port}}}]}
        if cluster
        else {"ports": [{"portNumber": port}]}
    )
    rule = {
        "action": "Accept" if cluster else "Allow",
        "to" if side.direction == "egress" else "from": [peer],
        **ports,
    }
    return {
        "apiVersion": f"policy.networking.k8s.io/{'v1alpha2' if cluster else 'v1alpha1'}",
        "kind": denied_by.kind,
        "metadata": {"name": _name(side, found)},
        "spec": {
            **({"tier": denied_by.tier} if cluster else {}),
            "priority": denied_by.priority - 1,
            "subject": {"pods": _namespaced(pod.namespace, pod.labels)},
            side.direction: [rule],
        },
    }


def _namespaced(namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: namespace}},
        "podSelector": _selector(labels),
    }


def _name(side: Side, found: Explanation) -> str:
    ends = [
        one.pod.name if one.pod is not None else re.sub(r"[.:]+", "-", one.name)
        for one in (found.source, found.target)
    ]
    word = "to" if side.direction == "egress" else "from"
    first, second = ends if side.direction == "egress" else reversed(ends)
    text = f"{first}-{word}-{second}-{found.port}-{found.protocol.lower()}"
    return text[-_NAME_CHARACTERS:].strip("-.")
