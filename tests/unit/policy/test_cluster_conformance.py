"""ClusterNetworkPolicy's conformance cases: data with upstream's titles."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ztprobe.policy.explanation import Explainer
from ztprobe.policy.manifests import Document
from ztprobe.policy.objects import read_objects

DATA = yaml.safe_load((Path(__file__).parents[2] / "data/policy/cluster_network_policy.yaml").read_text())
CASES_UPSTREAM = 92  # t.Run in conformance/tests at the commit that the data names
CONNECTIONS_UPSTREAM = 301  # calls of PokeServer there
HOUSES = ("gryffindor", "slytherin", "hufflepuff", "ravenclaw")
PREFIX = "network-policy-conformance-"
ADDRESSES = {f"{house}-{n}": f"10.0.{h}.{n + 1}" for h, house in enumerate(HOUSES) for n in (0, 1)} | {
    f"forbidden-forrest-{n}": f"192.168.0.{n + 1}" for n in (0, 1)
}


def selector(text: str) -> dict[str, Any]:
    kind, _, value = text.partition(":")
    if kind == "ns":
        return {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": PREFIX + value}}}
    house = {"matchLabels": {"conformance-house": value}}
    if kind == "house":
        return {"namespaces": house}
    if kind == "pods":
        return {"pods": {"namespaceSelector": house, "podSelector": house}}
    assert kind == "nodes"
    return {"nodes": {"matchLabels": {"kubernetes.io/os": value}}}


def port(text: str) -> dict[str, Any]:
    protocol, _, where = text.partition(":")
    if protocol == "name":
        return {"destinationNamedPort": where}
    if "-" in where:
        start, end = map(int, where.split("-"))
        return {protocol: {"destinationPort": {"range": {"start": start, "end": end}}}}
    return {protocol: {"destinationPort": {"number": int(where)}}}


def rule(text: str, direction: str) -> dict[str, Any]:
    action, *words = text.split()
    networks = [w.removeprefix("net:") for w in words if w.startswith("net:")]
    ports = [port(w) for w in words if w.startswith(("tcp:", "udp:", "sctp:", "name:"))]
    peers = [selector(w) for w in words if w.startswith(("ns:", "house:", "pods:", "nodes:"))]
    if networks:
        peers.append({"networks": [re.sub(r"^\w+-\d", lambda m: ADDRESSES[m[0]], one) for one in networks]})
    return {
        "action": action,
        "to" if direction == "egress" else "from": peers,
        **({"protocols": ports} if ports else {}),
    }


def policy(data: dict[str, Any]) -> dict[str, Any]:
    if "network-policy" in data:
        peer = [{"namespaceSelector": selector(data["ingress"])["namespaces"]}]
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": data["network-policy"], "namespace": PREFIX + data["namespace"]},
            "spec": {
                "podSelector": None,
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": peer}],
                "egress": [{"to": peer}],
            },
        }
    spec = {"tier": data["tier"], "priority": data["priority"], "subject": selector(data["subject"])}
    spec |= {d: [rule(r, d) for r in data[d]] for d in ("ingress", "egress") if d in data}
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": data["name"]},
        "spec": spec,
    }


def pod(name: str) -> dict[str, Any]:
    house = name.rpartition("-")[0]
    ports = [
        {"name": "web", "containerPort": 80},
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": PREFIX + house, "labels": {"conformance-house": house}},
        "spec": {
            "hostNetwork": house == "forbidden-forrest",
            "nodeName": f"node-{name[-1]}",
            "containers": [{"name": "server", "ports": ports if house in HOUSES else []}],
        },
        "status": {"podIP": ADDRESSES[name]},
    }


def node(number: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node-{number}", "labels": {"kubernetes.io/os": "linux"}},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.0.{number + 1}"}]},
    }


class Scene:
    """The objects of a suite, as its cases leave them."""

    def __init__(self, policies: list[dict[str, Any]]) -> None:
        self.labels = {house: house for house in (*HOUSES, "forbidden-forrest")}
        self.policies = {one["metadata"]["name"]: one for one in map(policy, policies)}

    def apply(self, step: str) -> None:
        word, *words = step.split()
        if word == "delete":
            self.policies = {k: p for k, p in self.policies.items() if p["kind"] != "NetworkPolicy"}
            return
        if word == "label":
            self.labels[words[0]] = words[1]
            return
        spec = self.policies[words[0]]["spec"]
        if word == "priority":
            spec["priority"] = int(words[1])
            return
        rules = spec[words[1]]
        if word == "swap":
            one, other = int(words[2]), int(words[3])
            rules[one], rules[other] = rules[other], rules[one]
        elif word == "action":
            rules[int(words[2])]["action"] = words[3]
        elif word == "rename":
            rules[int(words[2])]["protocols"] = [port(words[3])]
        else:
            assert word == "insert"
            rules.insert(0, rule(" ".join(words[2:]), words[1]))

    def explainer(self) -> Explainer:
        documents = [
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": PREFIX + house, "labels": {"conformance-house": label}},
            }
            for house, label in self.labels.items()
        ]
        documents += [node(0), node(1), *map(pod, ADDRESSES), *self.policies.values()]
        return Explainer(read_objects(Document(copy.deepcopy(one), "upstream") for one in documents))


@pytest.mark.parametrize("suite", DATA["suites"], ids=lambda suite: suite["suite"])
def test_conformance(suite: dict[str, Any]) -> None:
    scene = Scene(DATA["policies"][suite["policies"]])
    for case in suite["cases"]:
        explainer = scene.explainer()
        for step in case["steps"]:
            word, *words = step.split()
            if word not in ("open", "shut"):
                scene.apply(step)
                explainer = scene.explainer()
                continue
            source, target = (f"{PREFIX}{name.rpartition('-')[0]}/{name}" for name in words[:2])
            protocol, _, number = words[2].partition(":")
            found = explainer.explain(source, target, protocol.upper(), int(number))
            expected = ("allowed", "not applicable") if word == "open" else ("denied",)
            assert found.verdict in expected, f"{case['title']}: {step}: {found}"


def test_every_case_of_upstream_is_here() -> None:
    steps = [step for suite in DATA["suites"] for case in suite["cases"] for step in case["steps"]]
    assert sum(len(suite["cases"]) for suite in DATA["suites"]) == CASES_UPSTREAM
    assert sum(step.startswith(("open ", "shut ")) for step in steps) == CONNECTIONS_UPSTREAM
