"""Where network plugins are known to differ from the API, each with its source.

A verdict here is what the API says. Which plugin enforces it, and in which version, is not among the
objects, so an explanation names every deviation that could change its answer. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ztprobe.policy.compiled import Compiled
from ztprobe.policy.compiled_rules import CompiledRule
from ztprobe.policy.model import AddressBlock, NetworkPeer, PodPeer, PortMatch
from ztprobe.policy.selections import Endpoint

__all__ = ("DEVIATIONS", "Deviation", "possible_deviations")


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One way in which one plugin differs."""

    plugin: str
    when: str  # a situation, see `possible_deviations`
    what: str
    source: str  # where that was read


DEVIATIONS = (
    Deviation(
        plugin="Cilium",
        when="network-means-pod",
        what="ipBlock and networks do not match the addresses of pods, only what is outside",
        source="https://github.com/cilium/cilium/issues/9209",
    ),
    Deviation(
        plugin="Cilium",
        when="network-means-node",
        what="ipBlock and networks do not match nodes unless policy-cidr-match-mode has `nodes`",
        source="https://github.com/cilium/cilium/issues/20550",
    ),
    Deviation(
        plugin="Cilium",
        when="port-name-with-several-numbers",
        what="a port's name in a rule for egress fails where pods have it with several numbers",
        source="https://github.com/cilium/cilium/issues/30003",
    ),
    Deviation(
        plugin="Cilium",
        when="end-port",
        what="endPort is ignored before version 1.16: only the first port is allowed",
        source="https://github.com/cilium/cilium/issues/16622",
    ),
    Deviation(
        plugin="Cilium",
        when="sctp",
        what="SCTP is off unless it was enabled, and does not work through Services",
        source="https://github.com/cilium/cilium/issues/5719",
    ),
    Deviation(
        plugin="kube-router",
        when="sctp",
        what="rules for SCTP are not supported",
        source="https://github.com/cloudnativelabs/kube-router/issues/1019",
    ),
    Deviation(
        plugin="Calico",
        when="sctp",
        what="an INIT-ACK that connection tracking calls invalid is dropped, whatever policies say",
        source="https://github.com/projectcalico/calico/issues/2570",
    ),
    Deviation(
        plugin="Calico",
        when="host-network",
        what="where HostEndpoints exist, Calico's policies apply to host-network pods, denying by default",
        source="https://docs.tigera.io/calico/latest/reference/host-endpoints/",
    ),
    Deviation(
        plugin="AWS VPC CNI",
        when="port-name-beside-network",
        what="a port's name beside an ipBlock in a rule for ingress allows nothing",
        source="https://github.com/aws/amazon-network-policy-controller-k8s/issues/81",
    ),
    Deviation(
        plugin="AWS VPC CNI",
        when="dual-stack",
        what="policies apply to one address family only: that of the cluster",
        source="https://docs.aws.amazon.com/eks/latest/userguide/cni-network-policy.html",
    ),
    Deviation(
        plugin="OVN-Kubernetes",
        when="host-network-meant-by-namespace",
        what="namespaceSelector with an empty podSelector beside it means host-network pods too",
        source="https://docs.okd.io/latest/networking/network_security/network_policy/about-network-policy.html",
    ),
    Deviation(
        plugin="kindnet, kube-network-policies",
        when="host-network-selected",
        what="replies of host-network pods that a podSelector matches were dropped (mended in July 2026)",
        source="https://github.com/kubernetes-sigs/kube-network-policies/pull/389",
    ),
)


def possible_deviations(compiled: Compiled, source: int, target: int, protocol: str) -> tuple[Deviation, ...]:
    """The deviations that could change the verdict between two endpoints (slots)."""
    situations = set(_situations(compiled, source, target, protocol))
    return tuple(one for one in DEVIATIONS if one.when in situations)


def _situations(compiled: Compiled, source: int, target: int, protocol: str) -> Iterator[str]:
    for direction, subject, peer_slot in (("egress", source, target), ("ingress", target, source)):
        end, other = (compiled.selections.endpoints[slot] for slot in (subject, peer_slot))
        if end.pod is not None and end.pod.host_network:
            yield "host-network"
            if any(_would_select(compiled, end, one.policy.subject) for one in compiled.policies.values()):
                yield "host-network-selected"
        selecting = [compiled.policies[serial] for serial in compiled.group_of(subject, direction).serials]
        if not selecting:
            continue
        if protocol == "SCTP":
            yield "sctp"
        if end.pod is not None and len({a.version for a in end.pod.addresses}) > 1:
            yield "dual-stack"
        for one in selecting:
            for rule in one.rules[direction]:
                yield from _of_rule(compiled, rule, other, peer_slot)
                spec = one.policy.rules[direction][rule.number]
                for port in spec.ports or ():
                    if port.protocol == protocol:
                        yield from _of_port(compiled, port, direction, spec.peers)
                if any(_means_namespace(compiled, peer, other) for peer in spec.peers or ()):
                    yield "host-network-meant-by-namespace"


def _of_rule(compiled: Compiled, rule: CompiledRule, other: Endpoint, peer: int) -> Iterator[str]:
    for number in rule.peers or ():
        key = compiled.selections.key_of(number)
        if isinstance(key, AddressBlock) and compiled.selections.holds(number, peer) is not False:
            if other.selectable:
                yield "network-means-pod"
            elif other.pod is not None:
                yield "network-means-node"


def _of_port(
    compiled: Compiled, port: PortMatch, direction: str, peers: tuple[object, ...] | None
) -> Iterator[str]:
    if port.name is None:
        if port.first != port.last and (port.first, port.last) != (0, 65535):
            yield "end-port"
        return
    if direction == "ingress" and any(isinstance(peer, NetworkPeer) for peer in peers or ()):
        yield "port-name-beside-network"
    if (
        direction == "egress"
        and len(compiled.selections.port_numbers.get((port.protocol or "", port.name), ())) > 1
    ):
        yield "port-name-with-several-numbers"


def _would_select(compiled: Compiled, end: Endpoint, subject: PodPeer) -> bool:
    if end.pod is None or not subject.pods.matches(end.pod.labels):
        return False
    if subject.namespace is not None:
        return subject.namespace == end.pod.namespace
    return compiled.selections.namespace_matches(subject.namespaces, end.pod.namespace) is True


def _means_namespace(compiled: Compiled, peer: object, end: Endpoint) -> bool:
    return (
        isinstance(peer, PodPeer)
        and not peer.pods.requirements
        and peer.namespace is None
        and end.pod is not None
        and end.pod.host_network
        and compiled.selections.namespace_matches(peer.namespaces, end.pod.namespace) is True
    )
