"""Explanations: what is not known, and what is special about ends."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.unit.policy.test_brute_force import objects_of
from ztprobe.errors import UsageError
from ztprobe.policy.explanation import Explainer

PODS = """
{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: a}}}
---
apiVersion: v1
kind: Pod
metadata: {name: both, namespace: x, labels: {app: both}}
spec: {nodeName: n}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], hostIP: 192.168.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: x, labels: {app: other}}
status: {podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: x, labels: {app: new}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: unknown}, status: {podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: x}, status: {podIP: 10.0.0.2, phase: Succeeded}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: x}, spec: {hostNetwork: true, nodeName: n}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host-2, namespace: x}, spec: {hostNetwork: true}}
"""
DENY_INGRESS = "{podSelector: {matchLabels: {app: both}}, policyTypes: [Ingress]}"


def explainer(*policies: str) -> Explainer:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(PODS))
    for number, text in enumerate(policies):
        spec = yaml.safe_load(text)
        cluster = "tier" in spec
        documents.append(
            {
                "apiVersion": "policy.networking.k8s.io/v1alpha2" if cluster else "networking.k8s.io/v1",
                "kind": "ClusterNetworkPolicy" if cluster else "NetworkPolicy",
                "metadata": {"name": f"p{number}"} | ({} if cluster else {"namespace": "x"}),
                "spec": spec,
            }
        )
    return Explainer(objects_of(documents))


def test_families_that_disagree_need_an_address() -> None:
    one = explainer(
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}"
    )
    found = one.explain("x/both", "x/other", "TCP", 1)
    assert found.verdict == "undecidable"
    assert found.missing[0] == "the address family: allowed over IPv4, denied over IPv6 (name an address)"
    assert one.explain("x/both", "10.0.0.2", "TCP", 1).verdict == "allowed"
    assert one.explain("x/both", "::ffff:10.0.0.2", "TCP", 1).verdict == "allowed"
    assert one.explain("x/both", "fd00::2", "TCP", 1).verdict == "denied"


def test_a_pod_without_an_address_may_be_in_a_network() -> None:
    one = explainer(
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}"
    )
    found = one.explain("x/other", "x/new", "TCP", 1)
    assert (found.verdict, found.missing) == ("undecidable", ("the address of x/new (status.podIP)",))


def test_a_namespace_without_its_object_may_have_any_labels_but_its_name() -> None:
    rule = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {%s}}}]}]}"
    found = explainer(rule % "team: a").explain("unknown/far", "x/other", "TCP", 1)
    assert (found.verdict, found.missing) == ("undecidable", ("the labels of namespace unknown (team)",))
    by_name = explainer(rule % "kubernetes.io/metadata.name: unknown")
    assert by_name.explain("unknown/far", "x/other", "TCP", 1).verdict == "allowed"


def test_a_pods_own_node_gets_in() -> None:
    one = explainer(DENY_INGRESS)
    assert one.explain("x/host", "x/both", "TCP", 1).ingress.reason.startswith("from the pod's own node")
    assert one.explain("192.168.0.1", "x/both", "TCP", 1).verdict == "allowed"
    assert one.explain("192.168.0.2", "x/both", "TCP", 1).verdict == "denied"
    found = one.explain("x/host-2", "x/both", "TCP", 1)
    assert (found.verdict, found.missing) == (
        "undecidable",
        ("whether x/host-2 runs on x/both's node (spec.nodeName)",),
    )


def test_a_cluster_policy_holds_a_pods_own_node_off() -> None:
    deny = (
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, "
        "egress: [{action: Deny, to: [{networks: [192.168.0.0/16]}]}]}"
    )
    assert explainer(deny).explain("x/both", "192.168.0.1", "TCP", 1).verdict == "denied"


def test_a_pod_reaches_itself_and_its_loopback() -> None:
    one = explainer("{podSelector: {}, policyTypes: [Ingress, Egress]}")
    assert one.explain("x/both", "x/both", "TCP", 1).verdict == "allowed"
    assert one.explain("x/both", "127.0.0.1", "TCP", 1).verdict == "allowed"


def test_of_one_priority_either_may_go_first() -> None:
    everyone = "{namespaces: {}}"
    rule = f"{{tier: Admin, priority: 5, subject: {everyone}, ingress: [{{action: %s, from: [{everyone}]}}]}}"
    found = explainer(rule % "Accept", rule % "Deny").explain("x/both", "x/other", "TCP", 1)
    assert found.verdict == "undecidable"
    assert "which goes first of" in found.missing[0]
    assert explainer(rule % "Deny", rule % "Deny").explain("x/both", "x/other", "TCP", 1).verdict == "denied"


def test_what_a_domain_name_resolves_to_is_not_known() -> None:
    rules = (
        "egress: [{action: Accept, to: [{domainNames: ['*.example.org']}]}, "
        "{action: Deny, to: [{networks: [0.0.0.0/0]}]}]"
    )
    found = explainer(f"{{tier: Admin, priority: 5, subject: {{namespaces: {{}}}}, {rules}}}").explain(
        "x/both", "192.0.2.1", "TCP", 443
    )
    assert (found.verdict, found.missing) == ("undecidable", ("whether *.example.org resolves to 192.0.2.1",))


def test_a_pod_that_has_ended_is_nobody() -> None:
    one = explainer()
    with pytest.raises(UsageError, match="this pod has ended"):
        one.explain("x/done", "x/other", "TCP", 1)
    assert one.explain("x/both", "10.0.0.2", "TCP", 1).target.name == "x/other"
