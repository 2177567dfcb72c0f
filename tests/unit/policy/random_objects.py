"""Random clusters as documents: small enough that rules meet, with every field of every kind of policy."""

from __future__ import annotations

import ipaddress
from random import Random
from typing import Any

from tests.unit.policy.brute_force import End

__all__ = ("CONNECTION_PORTS", "ends_of", "random_cluster", "random_pod", "random_policy")

NAMESPACES = ("a", "b", "c")
KEYS = ("app", "tier")
VALUES = ("x", "y", "z")
PORT_NAMES = ("web", "dns", "grpc")
CONNECTION_PORTS = (53, 80, 81, 443, 8080)
PROTOCOLS = ("TCP", "UDP", "SCTP")

Document = dict[str, Any]


def labels(random: Random) -> dict[str, str]:
    return {key: random.choice(VALUES) for key in KEYS if random.random() < 0.7}


def selector(random: Random) -> Document:
    found: Document = {}
    if random.random() < 0.5:
        found["matchLabels"] = {random.choice(KEYS): random.choice(VALUES)}
    if random.random() < 0.3:
        operator = random.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        item: Document = {"key": random.choice(KEYS), "operator": operator}
        if operator in ("In", "NotIn"):
            item["values"] = random.sample(VALUES, random.randint(1, 2))
        found["matchExpressions"] = [item]
    return found


def namespace_selector(random: Random) -> Document:
    if random.random() < 0.4:
        return {"matchLabels": {"kubernetes.io/metadata.name": random.choice(NAMESPACES)}}
    return selector(random)


def cidr(random: Random, six: bool) -> str:
    if six:
        return f"fd00::{random.randint(0, 12):x}/{random.choice((0, 8, 112, 124, 126, 127, 128))}"
    return f"10.0.0.{random.randint(0, 12)}/{random.choice((0, 8, 24, 28, 30, 31, 32))}"


def block(random: Random) -> Document:
    six = random.random() < 0.3
    outer = ipaddress.ip_network(cidr(random, six), strict=False)
    found: Document = {"cidr": str(outer)}
    inner = [ipaddress.ip_network(cidr(random, six), strict=False) for _ in range(2)]
    fitting = [str(n) for n in inner if n.prefixlen > outer.prefixlen and n.network_address in outer]
    if fitting and random.random() < 0.6:
        found["except"] = fitting
    return found


def peer(random: Random) -> Document:
    if random.random() < 0.35:
        return {"ipBlock": block(random)}
    found: Document = {}
    if random.random() < 0.6:
        found["podSelector"] = selector(random)
    if not found or random.random() < 0.4:
        found["namespaceSelector"] = namespace_selector(random)
    return found


def port_entry(random: Random) -> Document:
    found: Document = {}
    if random.random() < 0.6:
        found["protocol"] = random.choice(PROTOCOLS)
    kind = random.random()
    if kind < 0.4:
        found["port"] = random.choice(CONNECTION_PORTS)
        if random.random() < 0.4:
            found["endPort"] = found["port"] + random.choice((0, 1, 400, 8000))
    elif kind < 0.75:
        found["port"] = random.choice(PORT_NAMES)
    return found


def network_policy(random: Random, name: str) -> Document:
    spec: Document = {"podSelector": selector(random)}
    for direction, side in (("ingress", "from"), ("egress", "to")):
        if random.random() < 0.6:
            spec[direction] = [
                {
                    key: items
                    for key, items in (
                        (side, [peer(random) for _ in range(random.randint(0, 2))]),
                        ("ports", [port_entry(random) for _ in range(random.randint(0, 2))]),
                    )
                    if items or random.random() < 0.5
                }
                for _ in range(random.randint(0, 2))
            ]
    if random.random() < 0.6:
        spec["policyTypes"] = random.choice(([], ["Ingress"], ["Egress"], ["Ingress", "Egress"], None))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": random.choice(NAMESPACES)},
        "spec": spec,
    }


def subject(random: Random) -> Document:
    if random.random() < 0.5:
        return {"namespaces": namespace_selector(random)}
    return {"pods": {"namespaceSelector": namespace_selector(random), "podSelector": selector(random)}}


def cluster_rule(random: Random, direction: str, kind: str) -> Document:
    actions = {
        "ClusterNetworkPolicy": ("Accept", "Deny", "Pass"),
        "AdminNetworkPolicy": ("Allow", "Deny", "Pass"),
        "BaselineAdminNetworkPolicy": ("Allow", "Deny"),
    }[kind]
    peers, plain = [], True
    for _ in range(random.randint(1, 2)):
        roll = random.random()
        if direction == "egress" and roll < 0.25:
            peers.append(
                {"networks": [cidr(random, random.random() < 0.3) for _ in range(random.randint(1, 2))]}
            )
            plain = False
        elif direction == "egress" and roll < 0.35:
            peers.append({"nodes": {"matchLabels": {"os": random.choice(("linux", "other"))}}})
            plain = False
        else:
            peers.append(subject(random))
    rule: Document = {"action": random.choice(actions), "to" if direction == "egress" else "from": peers}
    if random.random() < 0.6:
        key = "protocols" if kind == "ClusterNetworkPolicy" else "ports"
        rule[key] = [cluster_port(random, kind, plain) for _ in range(random.randint(1, 2))]
    return rule


def cluster_port(random: Random, kind: str, names: bool) -> Document:
    protocol, first = random.choice(PROTOCOLS), random.choice(CONNECTION_PORTS)
    span = {"start": first, "end": first + random.choice((1, 400))}
    if names and random.random() < 0.3:
        key = "destinationNamedPort" if kind == "ClusterNetworkPolicy" else "namedPort"
        return {key: random.choice(PORT_NAMES)}
    if kind == "ClusterNetworkPolicy":
        where = {"number": first} if random.random() < 0.6 else {"range": span}
        return {protocol.lower(): {"destinationPort": where}}
    if random.random() < 0.6:
        return {"portNumber": {"protocol": protocol, "port": first}}
    return {"portRange": {"protocol": protocol, **span}}


def cluster_policy(random: Random, name: str) -> Document:
    kind = random.choice(("ClusterNetworkPolicy",) * 3 + ("AdminNetworkPolicy",))
    spec: Document = {"priority": random.choice((0, 5, 5, 10, 1000)), "subject": subject(random)}
    if kind == "ClusterNetworkPolicy":
        spec["tier"] = random.choice(("Admin", "Baseline"))
    return _with_rules(random, kind, name, spec)


def _with_rules(random: Random, kind: str, name: str, spec: Document) -> Document:
    for direction in ("ingress", "egress"):
        if random.random() < 0.7:
            spec[direction] = [cluster_rule(random, direction, kind) for _ in range(random.randint(1, 3))]
    version = "v1alpha2" if kind == "ClusterNetworkPolicy" else "v1alpha1"
    return {
        "apiVersion": f"policy.networking.k8s.io/{version}",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def random_policy(random: Random, name: str) -> Document:
    """A policy of any kind."""
    return network_policy(random, name) if random.random() < 0.6 else cluster_policy(random, name)


def random_pod(random: Random, number: int) -> Document:
    """A pod on one of two nodes; one in eight uses its node's network."""
    node = random.randint(1, 2)
    node_ips = [{"ip": f"10.0.0.{200 + node}"}, {"ip": f"fd00::{200 + node:x}"}]
    host = random.random() < 0.12
    own = [{"ip": f"10.0.0.{number + 1}"}, {"ip": f"fd00::{number + 1:x}"}]
    ips = node_ips if host else random.choice((own[:1], own[:1], own, own[1:]))
    containers = [
        {
            "name": f"c{n}",
            "ports": [
                {
                    "containerPort": random.choice(CONNECTION_PORTS),
                    **({"name": random.choice(PORT_NAMES)} if random.random() < 0.8 else {}),
                    **({"protocol": random.choice(PROTOCOLS)} if random.random() < 0.7 else {}),
                }
                for _ in range(random.randint(0, 2))
            ],
        }
        for n in range(2)
    ]
    spec: Document = {"nodeName": f"node-{node}", "containers": containers[:1], "hostNetwork": host}
    if random.random() < 0.3:
        spec["initContainers"] = [containers[1] | random.choice(({}, {"restartPolicy": "Always"}))]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"pod-{number}",
            "namespace": random.choice(NAMESPACES),
            "labels": labels(random),
        },
        "spec": spec,
        "status": {"phase": "Running", "podIPs": ips, "hostIPs": node_ips},
    }


def random_cluster(random: Random) -> list[Document]:
    """Documents of one cluster."""
    found = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels(random)}}
        for name in NAMESPACES
    ]
    found += [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"node-{n}", "labels": {"os": random.choice(("linux", "other"))}},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": f"10.0.0.{200 + n}"},
                    {"type": "InternalIP", "address": f"fd00::{200 + n:x}"},
                    {"type": "Hostname", "address": f"node-{n}"},
                ]
            },
        }
        for n in (1, 2)
    ]
    found += [random_pod(random, n) for n in range(random.randint(2, 6))]
    found += [network_policy(random, f"np-{n}") for n in range(random.randint(0, 5))]
    found += [cluster_policy(random, f"cnp-{n}") for n in range(random.choice((0, 0, 1, 2, 3, 5)))]
    if random.random() < 0.2:
        spec = {"subject": subject(random)}
        found.append(_with_rules(random, "BaselineAdminNetworkPolicy", "default", spec))
    random.shuffle(found)
    return found


def ends_of(documents: list[Document]) -> list[End]:
    """Every pod with each of its addresses, and some addresses outside."""
    found: list[End] = [
        (one, entry["ip"]) for one in documents if one["kind"] == "Pod" for entry in one["status"]["podIPs"]
    ]
    return [*found, (None, "10.0.0.12"), (None, "192.0.2.1"), (None, "fd00::c"), (None, "10.0.0.202")]
