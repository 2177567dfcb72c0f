"""Policies against a second reading of Kubernetes' rules, and against the filter's own text."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.policies import document, pod
from ztprobe.errors import UsageError
from ztprobe.policy import PolicyPod, compile_policies, to_nft

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
PORTS = (53, 80, 50051)
NAMES = ("dns", "web", "grpc")


# -- a naive reading of the API's documentation, straight from the documents --------------------


def label_selector_matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        key, values = expression["key"], expression.get("values", [])
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": key not in labels or labels[key] not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[expression["operator"]]
        if not holds:
            return False
    return True


def within(address: str, cidr: str) -> bool:
    network, _, bits = cidr.partition("/")
    one, other = (
        int("".join(f"{int(part):08b}" for part in text.split(".")), 2) for text in (address, network)
    )
    return one >> (32 - int(bits)) == other >> (32 - int(bits))


def peer_matches(peer: dict[str, Any], other: PolicyPod, policy_namespace: str) -> bool:
    if "ipBlock" in peer:
        excepted = any(within(other.address, cidr) for cidr in peer["ipBlock"].get("except", []))
        return within(other.address, peer["ipBlock"]["cidr"]) and not excepted
    if "namespaceSelector" in peer:
        if not label_selector_matches(peer["namespaceSelector"], {NAMESPACE_LABEL: other.namespace}):
            return False
    elif other.namespace != policy_namespace:
        return False
    return label_selector_matches(peer.get("podSelector", {}), dict(other.labels))


def port_matches(entry: dict[str, Any], receiver: PolicyPod, protocol: str, port: int) -> bool:
    if entry.get("protocol", "TCP") != protocol:
        return False
    wanted = entry.get("port")
    if isinstance(wanted, str):
        wanted = receiver.ports.get((protocol, wanted), -1)
    return wanted is None or wanted <= port <= entry.get("endPort", wanted)


def naive(documents: list[dict[str, Any]], src: PolicyPod, dst: PolicyPod, protocol: str, port: int) -> bool:
    if src is dst:
        return True
    for direction, side, subject, other in (("Egress", "to", src, dst), ("Ingress", "from", dst, src)):
        selected, permitted = False, False
        for item in documents:
            spec, namespace = item["spec"], item["metadata"]["namespace"]
            key = direction.lower()
            types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
            if direction not in types or subject.namespace != namespace:
                continue
            if not label_selector_matches(spec["podSelector"], dict(subject.labels)):
                continue
            selected = True
            for rule in spec.get(key, []):
                peers, ports = rule.get(side, []), rule.get("ports", [])
                if peers and not any(peer_matches(peer, other, namespace) for peer in peers):
                    continue
                if ports and not any(port_matches(entry, dst, protocol, port) for entry in ports):
                    continue
                permitted = True
        if selected and not permitted:
            return False
    return True


# -- the filter's text, interpreted -------------------------------------------------------------


def filtered(rules: str, src: str, dst: str, protocol: str, port: int) -> bool:
    """What nft would do with a new connection's first packet; knows only what to_nft writes."""
    chains = {
        name: [line.strip() for line in body.strip().splitlines()]
        for name, body in re.findall(r"  chain (\w+) \{\n(.*?)\n  \}", rules, re.S)
    }

    def drops(chain: str) -> bool:
        for line in chains[chain]:
            match = re.fullmatch(
                r"(?:ip [ds]addr \{ (?P<peers>[^}]*) \} ?)?"
                r"(?:ip [ds]addr (?P<network>[\d./]+) (?:ip [ds]addr != \{ (?P<excepted>[^}]*) \} ?)?)?"
                r"(?:meta l4proto (?P<all>\w+) ?"
                r"|(?P<protocol>tcp|udp|sctp) dport (?P<port>\d+)(?:-(?P<last>\d+))? ?)?counter return",
                line,
            )
            if match is None:
                assert line.startswith(("update @dropped", "counter name drop_")), line
                if line.endswith(" drop"):
                    return True
                continue
            peer = dst if chain.startswith("egress") else src
            if match["peers"] is not None and peer not in match["peers"].split(", "):
                continue
            if match["network"] is not None and not within(peer, match["network"]):
                continue
            if match["excepted"] is not None and any(within(peer, n) for n in match["excepted"].split(", ")):
                continue
            if (match["all"] or match["protocol"] or protocol) != protocol:
                continue
            if match["port"] is None or int(match["port"]) <= port <= int(match["last"] or match["port"]):
                return False
        raise AssertionError(f"{chain} ends without a drop")

    for line in chains["forward"][2:]:
        field, elements = re.fullmatch(r"ip (saddr|daddr) vmap \{ (.*) \}", line).groups()
        jumps = dict(element.split(" : jump ") for element in elements.split(", "))
        chain = jumps.get(src if field == "saddr" else dst)
        if chain is not None and drops(chain):
            return False
    return True


# -- arbitrary clusters -------------------------------------------------------------------------

labels = st.dictionaries(st.sampled_from(("app", "tier")), st.sampled_from(("a", "b")), max_size=2)
expressions = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(("app", "tier")),
            "operator": st.sampled_from(("In", "NotIn")),
            "values": st.lists(st.sampled_from(("a", "b")), min_size=1, max_size=2, unique=True),
        }
    ),
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(("app", "tier")),
            "operator": st.sampled_from(("Exists", "DoesNotExist")),
        }
    ),
)
selectors = st.fixed_dictionaries(
    {}, optional={"matchLabels": labels, "matchExpressions": st.lists(expressions, max_size=2)}
)
namespace_selectors = st.one_of(
    st.just({}),
    st.sampled_from(("fl", "other")).map(lambda name: {"matchLabels": {NAMESPACE_LABEL: name}}),
)
blocks = st.one_of(
    st.builds(lambda bits: {"cidr": f"10.0.0.0/{bits}"}, st.sampled_from((8, 29, 30, 31))),
    st.builds(
        lambda last: {"cidr": "10.0.0.0/24", "except": [f"10.0.0.{last}/32", "10.0.0.2/31"]},
        st.integers(1, 4),
    ),
)
peers = st.one_of(
    st.fixed_dictionaries({"ipBlock": blocks}),
    st.fixed_dictionaries({"podSelector": selectors}, optional={"namespaceSelector": namespace_selectors}),
    st.fixed_dictionaries({"namespaceSelector": namespace_selectors}),
)
port_ranges = st.builds(
    lambda protocol, port, more: {"protocol": protocol, "port": port, "endPort": port + more},
    st.sampled_from(("TCP", "SCTP")),
    st.sampled_from(PORTS),
    st.sampled_from((0, 27)),
)
port_entries = port_ranges | st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.sampled_from(("TCP", "UDP", "SCTP")),
        "port": st.one_of(st.sampled_from(PORTS), st.sampled_from(NAMES)),
    },
)


def allow_rules(side: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    rule = st.fixed_dictionaries(
        {}, optional={side: st.lists(peers, max_size=2), "ports": st.lists(port_entries, max_size=2)}
    )
    return st.lists(rule, min_size=1, max_size=2)


specs = st.fixed_dictionaries(
    {"podSelector": selectors},
    optional={
        "policyTypes": st.lists(st.sampled_from(("Ingress", "Egress")), unique=True),
        "ingress": allow_rules("from"),
        "egress": allow_rules("to"),
    },
)
documents = st.lists(st.tuples(specs, st.sampled_from(("fl", "other"))), min_size=1, max_size=4).map(
    lambda found: [document(f"p{n}", spec, namespace) for n, (spec, namespace) in enumerate(found)]
)
port_names = st.dictionaries(
    st.tuples(st.sampled_from(("TCP", "UDP")), st.sampled_from(NAMES)), st.sampled_from(PORTS), max_size=6
)
clusters = st.lists(
    st.tuples(st.sampled_from(("fl", "other")), labels, port_names), min_size=2, max_size=4
).map(
    lambda found: [
        pod(f"pod-{n}", f"10.0.0.{n + 1}", namespace, ports, **chosen)
        for n, (namespace, chosen, ports) in enumerate(found)
    ]
)


@settings(max_examples=400)
@given(documents=documents, pods=clusters)
def test_verdicts_follow_kubernetes_and_the_filter_follows_the_verdicts(
    documents: list[dict[str, Any]], pods: list[PolicyPod]
) -> None:
    before = copy.deepcopy(documents)
    if unknown := nobody_s_port_names(documents, pods):
        with pytest.raises(UsageError) as raised:
            compile_policies(documents, pods)
        assert any(f"is '{name}', and no pod" in str(raised.value) for name in unknown)
        return
    ruleset = compile_policies(documents, pods)
    assert documents == before
    rules = to_nft(ruleset)
    assert not re.search(r"\{ *\}", rules.replace("{ }\n", "")), "nft has no empty sets"
    for src in pods:
        for dst in pods:
            for protocol in ("TCP", "UDP", "SCTP"):
                for port in (*PORTS, 9):
                    verdict = ruleset.allows(src.name, dst.name, protocol, port)
                    assert verdict.allowed == naive(documents, src, dst, protocol, port)
                    assert (verdict.direction is None) == verdict.allowed
                    assert verdict.allowed or verdict.policies
                    if src is not dst:
                        seen = filtered(rules, src.address, dst.address, protocol.lower(), port)
                        assert seen == verdict.allowed


def nobody_s_port_names(documents: list[dict[str, Any]], pods: list[PolicyPod]) -> set[str]:
    """Names for ports in rules of which no pod that could receive has them."""
    found = set()
    for one in documents:
        spec, namespace = one["spec"], one["metadata"]["namespace"]
        types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        selected = [
            p
            for p in pods
            if p.namespace == namespace and label_selector_matches(spec["podSelector"], p.labels)
        ]
        for side, kind in (("from", "Ingress"), ("to", "Egress")):
            for rule in spec.get(kind.lower(), []) if kind in types and selected else []:
                receivers = selected
                if side == "to":
                    wanted = rule.get("to", [])
                    receivers = [
                        p for p in pods if not wanted or any(peer_matches(w, p, namespace) for w in wanted)
                    ]
                for entry in rule.get("ports", []):
                    key = (entry.get("protocol", "TCP"), entry.get("port"))
                    if isinstance(key[1], str) and receivers and not any(key in p.ports for p in receivers):
                        found.add(key[1])
    return found
