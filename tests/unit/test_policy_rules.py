"""Policies: single rules, told apart, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.policies import document, pod
from ztprobe.errors import UsageError
from ztprobe.policy import NFT_TABLE, compile_policies, to_nft

SERVER = pod("server", "10.0.0.1", ports={("TCP", "grpc"): 50051}, app="server")
CLIENT = pod("client", "10.0.0.2", app="client")
STRANGER = pod("stranger", "10.0.0.3", namespace="default", app="client")
PODS = (SERVER, CLIENT, STRANGER)
FROM_CLIENTS = document(
    "from-clients",
    {
        "podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": "grpc"}]}
        ],
    },
)


def test_a_pod_selector_alone_means_the_policys_own_namespace() -> None:
    rules = compile_policies([FROM_CLIENTS], PODS)
    assert rules.allows("client", "server", "tcp", 50051).policies == ("from-clients",)
    denied = rules.allows("stranger", "server", "TCP", 50051)
    assert (denied.allowed, denied.policies, denied.direction) == (False, ("from-clients",), "ingress")


def test_two_selectors_in_one_peer_both_have_to_hold() -> None:
    both = {"podSelector": {"matchLabels": {"app": "client"}}, "namespaceSelector": {}}
    policy = document("p", {"podSelector": {}, "ingress": [{"from": [both]}]})
    rules = compile_policies([policy], PODS)
    assert rules.allows("stranger", "server", "UDP", 1).allowed
    assert not rules.allows("server", "client", "UDP", 1).allowed


def test_policies_add_up() -> None:
    deny = document("deny", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
    rules = compile_policies([deny, FROM_CLIENTS], PODS)
    verdict = rules.allows("client", "server", "TCP", 50051)
    assert (verdict.allowed, verdict.policies, verdict.direction) == (False, ("deny",), "egress")
    out = document("out", {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]})
    verdict = compile_policies([deny, FROM_CLIENTS, out], PODS).allows("client", "server", "TCP", 50051)
    assert (verdict.allowed, verdict.policies) == (True, ("out", "from-clients"))


def test_a_namespace_is_selected_by_any_label() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "x"}}}
    policy = document("p", {"podSelector": {}, "ingress": [{"from": [peer]}]})
    assert not compile_policies([policy], PODS).allows("stranger", "server", "TCP", 1).allowed
    rules = compile_policies([policy], PODS, {"default": {"team": "x"}})
    assert rules.allows("stranger", "server", "TCP", 1).allowed
    assert "ip saddr { 10.0.0.3 } counter return" in to_nft(rules)


def test_networks_ranges_and_sctp_reach_the_filter() -> None:
    block = {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.0.0.2/32"]}}
    ports = [{"protocol": "SCTP", "port": 9, "endPort": 12}, {"protocol": "SCTP"}]
    policy = document("p", {"podSelector": {}, "ingress": [{"from": [block], "ports": ports}]})
    text = to_nft(compile_policies([policy], PODS))
    networks = "ip saddr 10.0.0.0/8 ip saddr != { 10.0.0.2/32, 10.1.0.0/16 }"
    assert f"    {networks} sctp dport 9-12 counter return\n" in text
    assert f"    {networks} meta l4proto sctp counter return\n" in text


def test_no_policy_filters_nothing() -> None:
    rules = compile_policies([], PODS)
    assert rules.allows("stranger", "server", "TCP", 1).policies == ()
    assert "vmap" not in to_nft(rules)


def test_the_table_is_ours_and_only_drops() -> None:
    text = to_nft(compile_policies([FROM_CLIENTS], PODS))
    assert text.startswith(f"table ip {NFT_TABLE} {{\n")
    assert "flush" not in text
    assert "priority -160; policy accept;" in text
    # A full set must not turn the drop off with it.
    assert not re.search(r"update @dropped.*drop$", text, re.M)


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        (
            {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]},
            "spec.ingress[0].from[0].ipBlock.cidr",
            "'10.0.0.0', expected a CIDR",
        ),
        (
            {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}}]}]},
            "spec.ingress[0].from[0].ipBlock.except[0]",
            "within 10.0.0.0/8",
        ),
        (
            {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
            "spec.ingress[0].from[0]",
            "beside another",
        ),
        (
            {"egress": [{"ports": [{"port": 9, "endPort": 1}]}]},
            "spec.egress[0].ports[0].endPort",
            "9 to 65535",
        ),
        ({"egress": [{"ports": [{"port": "a", "endPort": 1}]}]}, "spec.egress[0].ports[0].endPort", "name"),
        ({"egress": [{"ports": [{"endPort": 1}]}]}, "spec.egress[0].ports[0].endPort", "needs a port"),
        ({"ingress": [{"ports": [{"protocol": "ICMP"}]}]}, "spec.ingress[0].ports[0].protocol", "'ICMP'"),
        ({"ingress": [{"ports": [{"port": 65536}]}]}, "spec.ingress[0].ports[0].port", "65536"),
        ({"ingress": [{"ports": [{"port": True}]}]}, "spec.ingress[0].ports[0].port", "True"),
        ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]", "empty"),
        ({"ingress": {}, "policyTypes": ["Both"]}, "spec.policyTypes", "'Both'"),
        ({"ingress": {"from": []}}, "spec.ingress", "a list"),
        ({"priority": 1}, "spec.priority", "not supported"),
        ({"podSelector": {"matchName": "x"}}, "spec.podSelector.matchName", "not supported"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}},
            "spec.podSelector.matchExpressions[0].operator",
            "'Gt'",
        ),
    ],
)
def test_an_unsupported_field_is_named(change: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(UsageError) as raised:
        compile_policies([document("mine", {"podSelector": {}} | change)], PODS)
    assert str(raised.value).startswith(f"NetworkPolicy mine: field `{field}` ")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "field", "whose"),
    [
        (
            {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"ports": [{"port": "grpcs"}]}]},
            "ingress",
            "server has grpc/TCP",
        ),
        (
            {
                "podSelector": {},
                "egress": [
                    {
                        "to": [{"podSelector": {"matchLabels": {"app": "client"}}}],
                        "ports": [{"port": "grpcs"}],
                    }
                ],
            },
            "egress",
            "client has none",
        ),
        (
            {"podSelector": {}, "egress": [{"ports": [{"port": 53}, {"port": "grpcs"}]}]},
            "egress",
            "server has grpc/TCP; client has none; stranger has none; and 2 more",
        ),
    ],
)
def test_a_port_name_that_nobody_has_is_named(spec: dict[str, Any], field: str, whose: str) -> None:
    more = [pod(f"more-{n}", f"10.0.1.{n}", namespace="default") for n in range(2)]
    with pytest.raises(UsageError) as raised:
        compile_policies([document("mine", spec)], [*PODS, *more])
    number = len(spec[field][0]["ports"]) - 1
    assert str(raised.value) == (
        f"NetworkPolicy mine: field `spec.{field}[0].ports[{number}].port` is 'grpcs', and no pod that it is"
        f" about has a TCP port of that name: {whose}"
    )


def test_a_port_name_that_one_of_several_has_or_in_a_policy_for_nobody_is_none_of_ours() -> None:
    everyone = document("mine", {"podSelector": {}, "ingress": [{"ports": [{"port": "grpc"}]}]})
    assert compile_policies([everyone], PODS).allows("client", "server", "TCP", 50051).allowed
    absent = {"podSelector": {"matchLabels": {"app": "cache"}}, "ingress": [{"ports": [{"port": "redis"}]}]}
    assert compile_policies([document("other", absent)], PODS).isolated["ingress"] == {}


def test_another_kind_of_policy_is_refused() -> None:
    cilium = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "c"},
        "spec": {},
    }
    with pytest.raises(UsageError, match=r"NetworkPolicy c: is cilium.io/v2 CiliumNetworkPolicy"):
        compile_policies([cilium], PODS)
