"""A second evaluator of policies, from the documents and the API's own words. Shares no code with ztprobe.

It knows nothing of sets, classes or tiers as data: for one connection it reads every policy from the
start, each time. All facts have to be there (addresses, namespaces); of policies with one
priority every order is tried.
"""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

__all__ = ("Cluster", "End")

End = tuple[dict[str, Any] | None, str]  # the Pod document (None: outside) and the address that is used
Documents = list[dict[str, Any]]


def chosen(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    selector = selector or {}
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        there = rule["key"] in labels
        listed = there and labels[rule["key"]] in (rule.get("values") or [])
        if not {"In": listed, "NotIn": not listed, "Exists": there, "DoesNotExist": not there}[
            rule["operator"]
        ]:
            return False
    return True


def inside(address: str, cidr: str) -> bool:
    one, network = ipaddress.ip_address(address), ipaddress.ip_network(cidr, strict=False)
    if one.version != network.version:
        return False
    shift = network.max_prefixlen - network.prefixlen
    return int(one) >> shift == int(network.network_address) >> shift


class Cluster:
    """Documents of one cluster."""

    def __init__(self, documents: Documents) -> None:
        def of(kind: str) -> Documents:
            return [document for document in documents if document["kind"] == kind]

        self.namespaces = {
            one["metadata"]["name"]: {
                **(one["metadata"].get("labels") or {}),
                "kubernetes.io/metadata.name": one["metadata"]["name"],
            }
            for one in of("Namespace")
        }
        self.nodes = of("Node")
        self.network_policies = of("NetworkPolicy")
        self.admin = of("AdminNetworkPolicy") + [
            one for one in of("ClusterNetworkPolicy") if one["spec"]["tier"] == "Admin"
        ]
        self.baseline = of("BaselineAdminNetworkPolicy") + [
            one for one in of("ClusterNetworkPolicy") if one["spec"]["tier"] == "Baseline"
        ]

    def verdict(self, source: End, target: End, protocol: str, port: int) -> str:
        """allowed, denied, not applicable, or undecidable (of policies with one priority)."""
        if source[0] is not None and source[0] is target[0]:
            selected = self._selected(source, "egress") or self._selected(target, "ingress")
            return "allowed" if selected else "not applicable"
        answers = []
        for direction, subject, other in (("egress", source, target), ("ingress", target, source)):
            if self._selected(subject, direction):
                answers.append(self._direction(direction, subject, other, target, protocol, port))
        if {"denied"} in answers:
            return "denied"
        if any(len(answer) > 1 for answer in answers):
            return "undecidable"
        return "allowed" if answers else "not applicable"

    def _selected(self, end: End, direction: str) -> bool:
        if end[0] is None or end[0]["spec"].get("hostNetwork"):
            return False
        return any(self._isolates(p, end[0], direction) for p in self.network_policies) or any(
            policy["spec"].get(direction) and self._subject(policy, end)
            for policy in self.admin + self.baseline
        )

    def _isolates(self, policy: dict[str, Any], pod: dict[str, Any], direction: str) -> bool:
        spec = policy["spec"]
        types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
        return (
            direction.title() in types
            and pod["metadata"]["namespace"] == policy["metadata"]["namespace"]
            and chosen(spec.get("podSelector"), pod["metadata"].get("labels") or {})
        )

    def _subject(self, policy: dict[str, Any], end: End) -> bool:
        return self._cluster_peer(policy["spec"]["subject"], end)

    def _cluster_peer(self, peer: dict[str, Any], end: End) -> bool:
        pod, address = end
        if "networks" in peer:
            return any(inside(address, cidr) for cidr in peer["networks"])
        if "nodes" in peer:
            if pod is not None and not pod["spec"].get("hostNetwork"):
                return False
            return any(
                entry["address"] == address
                for node in self.nodes
                if chosen(peer["nodes"], node["metadata"].get("labels") or {})
                for entry in node["status"]["addresses"]
            )
        if pod is None or pod["spec"].get("hostNetwork"):
            return False
        namespace = self.namespaces[pod["metadata"]["namespace"]]
        if "namespaces" in peer:
            return chosen(peer["namespaces"], namespace)
        both = peer["pods"]
        labels = pod["metadata"].get("labels") or {}
        return chosen(both.get("namespaceSelector"), namespace) and chosen(both["podSelector"], labels)

    def _direction(
        self, direction: str, subject: End, other: End, target: End, protocol: str, port: int
    ) -> set[str]:
        def outcomes(policies: Documents) -> set[str]:
            mine = [p for p in policies if self._subject(p, subject)]
            mine.sort(key=lambda p: p["spec"].get("priority", 0))
            alike = [list(g) for _, g in itertools.groupby(mine, key=lambda p: p["spec"].get("priority", 0))]
            found = set()
            for orders in itertools.product(*(itertools.permutations(group) for group in alike)):
                found.add(
                    self._first_match(itertools.chain(*orders), direction, other, target, protocol, port)
                )
            return found

        answers: set[str] = set()
        for word in outcomes(self.admin):
            if word in ("Accept", "Deny"):
                answers.add({"Accept": "allowed", "Deny": "denied"}[word])
                continue
            isolating = [p for p in self.network_policies if self._isolates(p, subject[0], direction)]
            if isolating:
                local = direction == "ingress" and self._own_node(subject[0], other)
                allowed = local or any(
                    self._rule_allows(rule, policy, direction, other, target, protocol, port)
                    for policy in isolating
                    for rule in policy["spec"].get(direction) or []
                )
                answers.add("allowed" if allowed else "denied")
                continue
            for last in outcomes(self.baseline):
                answers.add("denied" if last == "Deny" else "allowed")
        return answers

    def _own_node(self, pod: dict[str, Any], other: End) -> bool:
        if other[0] is not None and not other[0]["spec"].get("hostNetwork"):
            return False
        if other[1] in [entry["ip"] for entry in pod["status"].get("hostIPs") or []]:
            return True
        return other[0] is not None and other[0]["spec"]["nodeName"] == pod["spec"]["nodeName"]

    def _rule_allows(
        self,
        rule: dict[str, Any],
        policy: dict[str, Any],
        direction: str,
        other: End,
        target: End,
        protocol: str,
        port: int,
    ) -> bool:
        peers = rule.get("to" if direction == "egress" else "from") or []
        namespace = policy["metadata"]["namespace"]
        if peers and not any(self._peer(peer, namespace, other) for peer in peers):
            return False
        ports = rule.get("ports") or []
        return not ports or any(self._port(entry, target, protocol, port) for entry in ports)

    def _peer(self, peer: dict[str, Any], namespace: str, end: End) -> bool:
        pod, address = end
        if peer.get("ipBlock"):
            block = peer["ipBlock"]
            excepted = any(inside(address, cidr) for cidr in block.get("except") or [])
            return inside(address, block["cidr"]) and not excepted
        if pod is None or pod["spec"].get("hostNetwork"):
            return False
        where = pod["metadata"]["namespace"]
        if peer.get("namespaceSelector") is None:
            if where != namespace:
                return False
        elif not chosen(peer["namespaceSelector"], self.namespaces[where]):
            return False
        return chosen(peer.get("podSelector"), pod["metadata"].get("labels") or {})

    def _port(self, entry: dict[str, Any], target: End, protocol: str, port: int) -> bool:
        if (entry.get("protocol") or "TCP") != protocol:
            return False
        wanted = entry.get("port")
        if wanted is None:
            return True
        if isinstance(wanted, str):
            return (protocol, wanted, port) in self._names(target)
        return wanted <= port <= (entry.get("endPort") or wanted)

    def _names(self, target: End) -> list[tuple[str, str, int]]:
        pod = target[0]
        if pod is None or pod["spec"].get("hostNetwork"):
            return []
        stay = [c for c in pod["spec"].get("initContainers") or [] if c.get("restartPolicy") == "Always"]
        return [
            (one.get("protocol") or "TCP", one["name"], one["containerPort"])
            for container in (pod["spec"].get("containers") or []) + stay
            for one in container.get("ports") or []
            if one.get("name")
        ]

    def _first_match(
        self, policies: Any, direction: str, other: End, target: End, protocol: str, port: int
    ) -> str:
        for policy in policies:
            for rule in policy["spec"].get(direction) or []:
                peers = rule["to" if direction == "egress" else "from"]
                if not any(self._cluster_peer(peer, other) for peer in peers):
                    continue
                entries = rule.get("protocols", rule.get("ports"))
                if entries is None or any(self._cluster_port(e, target, protocol, port) for e in entries):
                    return {"Allow": "Accept"}.get(rule["action"], rule["action"])
        return "none"

    def _cluster_port(self, entry: dict[str, Any], target: End, protocol: str, port: int) -> bool:
        (kind, value), *_ = entry.items()
        if kind in ("destinationNamedPort", "namedPort"):
            return (protocol, value, port) in self._names(target)
        if kind == "portNumber":
            return (value.get("protocol", "TCP"), value["port"]) == (protocol, port)
        if kind == "portRange":
            return value.get("protocol", "TCP") == protocol and value["start"] <= port <= value["end"]
        if kind != protocol.lower():
            return False
        where = value["destinationPort"]
        if "number" in where:
            return where["number"] == port
        return where["range"]["start"] <= port <= where["range"]["end"]
