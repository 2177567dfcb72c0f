"""NetworkPolicies that are not what they should be: edited objects, compiled as any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ztprobe.validate.faults.acts.act import NODE, Act
from ztprobe.validate.faults.acts.filters import change_policies, filter_rules, forget_connections
from ztprobe.validate.faults.catalogue.words import (
    CLIENTS_POLICY,
    DNS_POLICY,
    SERVER,
    SERVERS_POLICY,
    TARGET,
    amid_round,
    without_startup_probes,
)
from ztprobe.validate.faults.model import Fault, Variant
from ztprobe.validate.faults.objects import Edit, EditedObjects

__all__ = ("FAULTS",)

_DNS_DROPPED = r"policy dropped fl-client-\d -> kube-dns {}/53: \d"
_PORT_DROPPED = r"policy dropped fl-client-\d -> fl-server tcp/50051: \d"
_SYN = "tcp flags & (syn | ack) == syn"
_APPLICATION_PORT = 15051  # behind the server's sidecar
_PERSISTENT, _RECONNECTING = ("persistent",), ("reconnecting",)

Peer = Mapping[str, Any]
Port = Mapping[str, Any]


def _egress(peer: Peer | None = None, port: Port | None = None) -> Edit:
    """The clients' rule for the server with another peer or port."""

    def edit(objects: EditedObjects) -> None:
        _change(objects.policy(CLIENTS_POLICY)["egress"][0], "to", peer, port)

    return edit


def _ingress(peer: Peer | None = None, port: Port | None = None) -> Edit:
    """The server's rule for the clients with another peer or port."""

    def edit(objects: EditedObjects) -> None:
        _change(objects.policy(SERVERS_POLICY)["ingress"][0], "from", peer, port)

    return edit


def _change(rule: dict[str, Any], side: str, peer: Peer | None, port: Port | None) -> None:
    if peer is not None:
        rule[side] = [dict(peer)]
    if port is not None:
        rule["ports"] = [{"protocol": "TCP", **port}]


def _labels(app: str, namespace: str | None = None) -> Peer:
    peer: dict[str, Any] = {"podSelector": {"matchLabels": {"app": app}}}
    if namespace is not None:
        peer["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return peer


def _block(cidr: str, *excepted: str) -> Peer:
    return {"ipBlock": {"cidr": cidr, "except": list(excepted)}}


def _all(*edits: Edit) -> Edit:
    def edit(objects: EditedObjects) -> None:
        for one in edits:
            one(objects)

    return edit


def _without(*names: str) -> Edit:
    def edit(objects: EditedObjects) -> None:
        for name in names:
            objects.remove("NetworkPolicy", name)

    return edit


def _only_closed(objects: EditedObjects) -> None:
    # One policy that selects the server alone, in place of two.
    _without(SERVERS_POLICY)(objects)
    objects.policy("default-deny")["policyTypes"] = ["Egress"]
    objects.add(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "isolate-server", "namespace": "fl"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "fl-server"}},
                "policyTypes": ["Ingress"],
                "ingress": [],
            },
        }
    )


def _dns(*ports: Port) -> Edit:
    def edit(objects: EditedObjects) -> None:
        objects.policy(DNS_POLICY)["egress"][0]["ports"] = [dict(port) for port in ports]

    return edit


def _ask_over_tcp(objects: EditedObjects) -> None:
    # As resolvers do with answers that are longer than a datagram.
    objects.pod("fl-client")["dnsConfig"] = {"options": [{"name": "use-vc"}]}


_TCP_DNS, _UDP_DNS = ({"protocol": protocol, "port": 53} for protocol in ("TCP", "UDP"))


def _edited(cause: str, shows: str, *variants: tuple[str, int, Edit], extra: Sequence[Variant] = ()) -> Fault:
    """A fault whose variants are edits of the objects: (what, level, edit)."""
    made = tuple(Variant(what=what, level=level, edit=edit, shows=shows) for what, level, edit in variants)
    return Fault(cause=f"policy.{cause}", variants=(*made, *extra))


def _cut(what: str, level: int, *acts: Act) -> Variant:
    return Variant(what=what, level=level, acts=acts, shows=r"done: .*round [23]", modes=_PERSISTENT)


def _closing(name: str) -> Edit:
    """As an administrator who tightens a policy does it: the rule goes, the isolation stays."""
    return _without(name)


def _rejecting(rule: str, at: int = 0) -> Act:
    return Act("reject", filter_rules(NODE, "forward", rule), amid_round(at) if at else None)


FAULTS = (
    _edited(
        "dns_blocked",
        _DNS_DROPPED.format("udp"),
        ("there is no rule for DNS", 1, _without(DNS_POLICY)),
        (
            "the rule for DNS is for port 5353",
            1,
            _dns({"protocol": "UDP", "port": 5353}, {"protocol": "TCP", "port": 5353}),
        ),
        ("there is no rule for DNS, with sidecars", 3, _all(_without(DNS_POLICY), without_startup_probes)),
    ),
    _edited(
        "dns_blocked_udp",
        _DNS_DROPPED.format("udp"),
        ("DNS is allowed over TCP only", 1, _dns(_TCP_DNS)),
        (
            "DNS is allowed over TCP only, as one of two ports",
            1,
            _dns(_TCP_DNS, {"protocol": "TCP", "port": 853}),
        ),
        ("DNS is allowed over TCP only, with sidecars", 3, _all(_dns(_TCP_DNS), without_startup_probes)),
    ),
    _edited(
        "dns_blocked_tcp",
        _DNS_DROPPED.format("tcp"),
        ("DNS is allowed over UDP only, and pods ask over TCP", 1, _all(_dns(_UDP_DNS), _ask_over_tcp)),
        (
            "DNS is allowed over UDP only, as one of two ports, and pods ask over TCP",
            1,
            _all(_dns(_UDP_DNS, {"protocol": "UDP", "port": 5353}), _ask_over_tcp),
        ),
        (
            "DNS over TCP is allowed at another port, and pods ask over TCP",
            1,
            _all(_dns(_UDP_DNS, {"protocol": "TCP", "port": 853}), _ask_over_tcp),
        ),
    ),
    _edited(
        "port_denied_egress",
        _PORT_DROPPED,
        ("clients may do nothing but ask for names", 1, _without(CLIENTS_POLICY)),
        ("clients may reach another application instead", 1, _egress(_labels("metrics"), {"port": 9090})),
        ("clients may do nothing but ask for names, with sidecars", 3, _without(CLIENTS_POLICY)),
    ),
    _edited(
        "port_denied_ingress",
        _PORT_DROPPED,
        ("the server may be reached by monitoring only", 1, _ingress(_labels("monitoring"), {"port": 9090})),
        (
            "the server may be reached from another namespace's monitoring only",
            1,
            _ingress(_labels("prometheus", "monitoring"), {"port": 9090}),
        ),
        (
            "the server may be reached by monitoring only, with sidecars",
            3,
            _ingress(_labels("monitoring"), {"port": 9090}),
        ),
    ),
    _edited(
        "default_deny",
        _PORT_DROPPED,
        ("the server is isolated and has no rule", 1, _without(SERVERS_POLICY)),
        ("a policy of its own isolates the server and has no rule", 1, _only_closed),
        ("the server is isolated and has no rule, with sidecars", 3, _without(SERVERS_POLICY)),
    ),
    _edited(
        "wrong_label",
        _PORT_DROPPED,
        ("the clients' rule is for app: fl-sever", 1, _egress(_labels("fl-sever"))),
        ("the server's rule is for app: fl-clients", 1, _ingress(_labels("fl-clients"))),
        ("the server's rule is for app: client, with sidecars", 3, _ingress(_labels("client"))),
    ),
    _edited(
        "wrong_namespace",
        _PORT_DROPPED,
        (
            "the clients' rule is for the server in another namespace",
            1,
            _egress(_labels("fl-server", "federated")),
        ),
        (
            "the server's rule is for clients in another namespace",
            1,
            _ingress(_labels("fl-client", "default")),
        ),
        (
            "the server's rule is for clients in another namespace, with sidecars",
            3,
            _ingress(_labels("fl-client", "fl-edge")),
        ),
    ),
    _edited(
        "wrong_port",
        _PORT_DROPPED,
        ("the clients' rule is for port 50052", 1, _egress(port={"port": 50052})),
        ("the server's rule is for port 5051", 1, _ingress(port={"port": 5051})),
        ("the clients' rule is for port 8080, with sidecars", 3, _egress(port={"port": 8080})),
    ),
    _edited(
        "wrong_port_name",
        _PORT_DROPPED,
        ("the clients' rule is for a port named grcp", 1, _egress(port={"port": "grcp"})),
        ("the server's rule is for a port named fl-grpc", 1, _ingress(port={"port": "fl-grpc"})),
        ("the server's rule is for a port named https, with sidecars", 3, _ingress(port={"port": "https"})),
    ),
    _edited(
        "wrong_port_range",
        _PORT_DROPPED,
        ("the clients' rule ends at port 50050", 1, _egress(port={"port": 50000, "endPort": 50050})),
        ("the server's rule ends at port 50050", 1, _ingress(port={"port": 50040, "endPort": 50050})),
        (
            "the clients' rule begins behind the port, with sidecars",
            3,
            _egress(port={"port": 50052, "endPort": 50060}),
        ),
    ),
    _edited(
        "ip_block_except",
        _PORT_DROPPED,
        (
            "the clients' rule leaves the server's address out",
            1,
            _egress(_block("10.244.0.0/16", "10.244.0.2/32")),
        ),
        (
            "the server's rule leaves the clients' addresses out",
            1,
            _ingress(_block("10.0.0.0/8", "10.244.0.0/24")),
        ),
        (
            "the server's rule leaves two addresses out, with sidecars",
            3,
            _ingress(_block("10.244.0.0/16", "10.244.0.3/32", "10.244.0.4/32")),
        ),
    ),
    _edited(
        "sidecar_port_blocked",
        _PORT_DROPPED,
        ("the clients' rule is for the application's port", 3, _egress(port={"port": _APPLICATION_PORT})),
        ("the server's rule is for the application's port", 3, _ingress(port={"port": _APPLICATION_PORT})),
        (
            "both rules are for the application's port",
            3,
            _all(_egress(port={"port": _APPLICATION_PORT}), _ingress(port={"port": _APPLICATION_PORT})),
        ),
    ),
    Fault(
        cause="policy.added_mid_run",
        variants=tuple(
            Variant(
                what=what,
                level=level,
                acts=(Act("policies", change_policies(edit), amid_round(number)),),
                shows=_PORT_DROPPED,
                modes=_RECONNECTING,
            )
            for what, level, number, edit in (
                ("the server's rule is taken away in round 2", 1, 2, _closing(SERVERS_POLICY)),
                ("the clients' rule is taken away in round 3", 1, 3, _closing(CLIENTS_POLICY)),
                ("the server's rule is taken away in round 2, with sidecars", 3, 2, _closing(SERVERS_POLICY)),
            )
        ),
    ),
    Fault(
        cause="policy.cut_established",
        variants=(
            _cut(
                "the server's rule is taken away in round 2, and tracked connections are forgotten",
                1,
                Act("policies", change_policies(_closing(SERVERS_POLICY)), amid_round(2)),
                Act("forgotten", forget_connections, amid_round(2)),
            ),
            _cut(
                "a filter on the node drops the clients' packets from round 2 on",
                1,
                Act(
                    "filter",
                    filter_rules(NODE, "forward", "ip saddr {fl_client_1} tcp dport 50051 drop"),
                    amid_round(2),
                ),
            ),
            _cut(
                "a filter in the server's pod drops what comes from round 2 on",
                3,
                Act("filter", filter_rules(SERVER, "input", "tcp dport 50051 drop"), amid_round(2)),
            ),
        ),
    ),
    Fault(
        cause="policy.filter_without_policy",
        variants=tuple(
            Variant(
                what=what,
                level=level,
                acts=(Act("filter", filter_rules(pod, hook, rule)),),
                shows="done: filter",
            )
            for what, level, pod, hook, rule in (
                (
                    "a filter on the node drops what goes to the server",
                    0,
                    NODE,
                    "forward",
                    "tcp dport 50051 drop",
                ),
                ("a filter in the server's pod drops what comes", 1, SERVER, "input", "tcp dport 50051 drop"),
                (
                    "a filter in a client's pod drops what it sends",
                    2,
                    TARGET,
                    "output",
                    "tcp dport 50051 drop",
                ),
            )
        ),
    ),
    Fault(
        cause="policy.rejected",
        variants=(
            Variant(
                what="a filter on the node answers with an RST",
                acts=(_rejecting("tcp dport 50051 reject with tcp reset"),),
                shows="counts AttemptFails",
            ),
            Variant(
                what="a filter on the node answers with ICMP admin-prohibited",
                level=1,
                acts=(_rejecting("tcp dport 50051 reject with icmp type admin-prohibited"),),
                shows="counts AttemptFails|done: reject",
            ),
            Variant(
                what="a filter on the node answers SYNs with ICMP port-unreachable from round 2 on",
                acts=(_rejecting(f"{_SYN} tcp dport 50051 reject with icmp type port-unreachable", at=2),),
                shows="counts AttemptFails|done: reject",
                modes=_RECONNECTING,
            ),
        ),
    ),
)
