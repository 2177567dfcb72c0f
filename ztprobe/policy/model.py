"""What policies are about, and the policies: checked, and without defaults left open.

NetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy and BaselineAdminNetworkPolicy are one type
here: rules in three tiers, each with a subject, peers and ports. What a manifest does not tell (a
pod's address, a namespace's labels) is None and stays unknown. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from ztprobe.label_selectors import EVERYTHING, LabelSelector
from ztprobe.policy.fields import IPNetwork

__all__ = (
    "DIRECTIONS",
    "PROTOCOLS",
    "AddressBlock",
    "ClusterPod",
    "DomainPeer",
    "IPAddress",
    "Namespace",
    "NetworkPeer",
    "Node",
    "NodePeer",
    "Objects",
    "Peer",
    "PodPeer",
    "Policy",
    "PolicyRule",
    "PortMatch",
    "Service",
)

DIRECTIONS = ("egress", "ingress")
PROTOCOLS = ("TCP", "UDP", "SCTP")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class ClusterPod:
    """A pod as policies see it."""

    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[IPAddress, ...] = ()  # none: not known
    # (protocol, name, number) of the container ports that have a name, sidecars' too; None: not known
    named_ports: frozenset[tuple[str, str, int]] | None = frozenset()
    # (protocol, number) of all container ports
    container_ports: frozenset[tuple[str, int]] = frozenset()
    host_network: bool = False
    ended: bool = False  # phase Succeeded or Failed: its address may be another's by now
    node: str | None = None
    node_addresses: tuple[IPAddress, ...] = ()  # status.hostIPs
    template_of: str | None = None  # the kind that this is the pod template of; None: a pod
    # (name, its ports) of init containers that stay and of meshes' proxies
    sidecars: tuple[tuple[str, frozenset[tuple[str, int]]], ...] = ()

    @property
    def id(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """A namespace; ``kubernetes.io/metadata.name`` is among its labels."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node."""

    name: str
    labels: Mapping[str, str]
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service: its addresses are nobody's, a proxy replaces them by a pod's."""

    name: str
    namespace: str
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Pods by their labels, in one namespace or in those with certain labels; never host-network pods."""

    pods: LabelSelector = EVERYTHING
    namespace: str | None = None
    namespaces: LabelSelector = EVERYTHING  # read where `namespace` is None


@dataclass(frozen=True, slots=True)
class AddressBlock:
    """Addresses in a network and in none of those excepted."""

    network: IPNetwork
    excepted: tuple[IPNetwork, ...] = ()

    def contains(self, address: IPAddress) -> bool:
        """Whether the address is one of them."""
        if address.version != self.network.version or address not in self.network:
            return False
        return not any(address in network for network in self.excepted)

    def __str__(self) -> str:
        excepted = f" except {', '.join(map(str, self.excepted))}" if self.excepted else ""
        return f"{self.network}{excepted}"


@dataclass(frozen=True, slots=True)
class NetworkPeer:
    """Whoever has an address in one of the blocks, pods too."""

    blocks: tuple[AddressBlock, ...]


@dataclass(frozen=True, slots=True)
class NodePeer:
    """The addresses of nodes with certain labels."""

    nodes: LabelSelector


@dataclass(frozen=True, slots=True)
class DomainPeer:
    """Whatever certain names resolve to."""

    names: tuple[str, ...]


Peer = PodPeer | NetworkPeer | NodePeer | DomainPeer


@dataclass(frozen=True, slots=True)
class PortMatch:
    """A protocol (None: any) and, of the receiver's ports, a range or a name."""

    protocol: str | None
    first: int = 0
    last: int = 65535
    name: str | None = None  # then the range means nothing

    def __str__(self) -> str:
        if self.name is not None:
            return f"{self.name}/{self.protocol or 'any protocol'}"
        if (self.first, self.last) == (0, 65535):
            return f"every {self.protocol} port"
        return f"{self.first if self.first == self.last else f'{self.first}-{self.last}'}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One rule of a policy in one direction."""

    action: str  # Accept | Deny | Pass; of a NetworkPolicy always Accept
    peers: tuple[Peer, ...] | None  # None: everyone
    ports: tuple[PortMatch, ...] | None  # None: every port of every protocol
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy of any kind."""

    kind: str
    name: str
    namespace: str | None  # None: of the whole cluster
    tier: str  # Admin | NetworkPolicy | Baseline
    priority: int  # the lowest goes first in its tier; NetworkPolicies have none (0)
    subject: PodPeer
    # Only the directions that it is about.
    rules: Mapping[str, tuple[PolicyRule, ...]]
    unread: tuple[str, ...] = ()  # directions with rules that policyTypes leaves out

    @property
    def id(self) -> str:
        """``kind namespace/name``, or ``kind name``."""
        return f"{self.kind} {self.name if self.namespace is None else f'{self.namespace}/{self.name}'}"


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Everything that verdicts are about, at one moment."""

    pods: tuple[ClusterPod, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    nodes: tuple[Node, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)  # kinds without a meaning here -> how many
    unplaced: tuple[str, ...] = ()  # names of objects that name no namespace
