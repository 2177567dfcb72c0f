"""Known deviations of network plugins: named where they may apply, and there only."""

from __future__ import annotations

from typing import Any

import yaml

from tests.unit.policy.test_brute_force import objects_of
from ztprobe.policy.deviations import DEVIATIONS, possible_deviations
from ztprobe.policy.explanation import Explainer

OBJECTS = """
{apiVersion: v1, kind: Namespace, metadata: {name: x}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}}
spec: {nodeName: n, containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: x, labels: {app: b}}
spec: {nodeName: n, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: x, labels: {app: a}}
spec: {nodeName: m, hostNetwork: true}
status: {podIP: 10.0.0.9}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Ingress, Egress]
  ingress:
  - {from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: web}]}
  - from: [{namespaceSelector: {}, podSelector: {}}]
  egress:
  - {to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80, endPort: 90}, {port: web}]}
"""


def test_each_is_named_where_it_may_apply() -> None:
    explainer = Explainer(objects_of(list(yaml.safe_load_all(OBJECTS))))

    def found(source: str, target: str, protocol: str = "TCP") -> set[Any]:
        slots = (explainer.slots_of(source)[0], explainer.slots_of(target)[0])
        return {one.when for one in possible_deviations(explainer.compiled, *slots, protocol)}

    to_pod = {"network-means-pod", "end-port", "port-name-with-several-numbers", "dual-stack"}
    assert found("x/a", "x/b") == to_pod
    assert found("x/a", "x/b", "SCTP") == {"network-means-pod", "sctp", "dual-stack"}
    assert found("x/b", "x/a") == {"network-means-pod", "port-name-beside-network", "dual-stack"}
    from_host = found("x/host", "x/a")
    assert {"network-means-node", "host-network", "host-network-selected"} <= from_host
    assert "host-network-meant-by-namespace" in from_host
    assert found("x/b", "192.0.2.1") == set()
    met = to_pod | {"sctp", "port-name-beside-network"} | from_host
    assert {one.when for one in DEVIATIONS} == met


def test_each_has_a_source() -> None:
    for one in DEVIATIONS:
        assert one.source.startswith("https://")
        assert one.plugin
    plugins = {name for one in DEVIATIONS for name in one.plugin.split(", ")}
    assert {"Calico", "Cilium", "kube-router", "kindnet", "AWS VPC CNI", "OVN-Kubernetes"} <= plugins
