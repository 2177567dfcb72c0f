"""NetworkPolicies as a verdict on packets, and as an nftables table.

Kubernetes' rules (networking.k8s.io/v1): a pod that no policy selects for a
direction accepts everything in that direction; one that is selected accepts what at
least one of its policies allows, so policies only ever add up. A connection needs
both its sender's egress and its receiver's ingress. Replies belong to the
connection, which the filter leaves to connection tracking.

`compile_policies` resolves selectors and port names against the pods at hand into
plain rules on addresses; `Ruleset.allows` and `to_nft` read the same rules, so what
is explained is what is enforced. Supported: podSelector and namespaceSelector
(matchLabels, matchExpressions; namespaces are known by name alone), policyTypes, TCP
and UDP ports by number or name. Any other field is refused by name rather than
skipped, because a skipped field is another policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ztprobe.errors import UsageError

__all__ = ("DIRECTIONS", "NFT_TABLE", "PolicyPod", "Rule", "Ruleset", "Verdict", "compile_policies", "to_nft")

DIRECTIONS = ("egress", "ingress")
NFT_TABLE = "ztprobe_policy"

_PROTOCOLS = ("TCP", "UDP")
_NAMESPACE_NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True, kw_only=True)
class PolicyPod:
    """A pod as policies see it."""

    name: str  # unique among the pods given
    namespace: str
    labels: Mapping[str, str]
    address: str  # IPv4
    # containerPort names: (protocol, name) -> number
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, order=True)
class Rule:
    """What one policy allows one pod, in one direction, towards the peers at ``addresses``."""

    policy: str
    addresses: tuple[str, ...] | None  # None: any peer, of the cluster or not
    protocol: str | None  # None: every protocol
    port: int | None  # the receiver's; None: every port of the protocol

    def matches(self, peer: str, protocol: str, port: int) -> bool:
        """Whether this rule allows ``protocol``/``port`` with the peer at that address."""
        return (
            (self.addresses is None or peer in self.addresses)
            and self.protocol in (None, protocol)
            and self.port in (None, port)
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a new connection passes, and the policies that decided.

    Allowed: those with a rule for it (none: no policy selects either pod).
    Denied: those that isolate a pod in the direction that failed.
    """

    allowed: bool
    policies: tuple[str, ...]
    direction: str | None = None  # that failed: egress (at the sender) or ingress (at the receiver)


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """A pod in a direction in which at least one policy selects it."""

    policies: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, kw_only=True)
class Ruleset:
    """Policies resolved against pods."""

    pods: tuple[PolicyPod, ...]
    # direction -> pod name -> its isolation; pods missing here are not isolated
    isolated: Mapping[str, Mapping[str, Isolation]]

    def allows(self, src: str, dst: str, proto: str, port: int) -> Verdict:
        """The verdict on a new connection from pod ``src`` to pod ``dst`` (names).

        :param proto: TCP or UDP, in any case.
        :raises KeyError: no such pod.
        """
        pods = {pod.name: pod for pod in self.pods}
        source, target = pods[src], pods[dst]
        if source == target:  # never leaves the pod, and no policy can forbid it
            return Verdict(allowed=True, policies=())
        reasons: list[str] = []
        for direction, pod, peer in zip(DIRECTIONS, (source, target), (target, source), strict=True):
            isolation = self.isolated[direction].get(pod.name)
            if isolation is None:
                continue
            allowing = [r.policy for r in isolation.rules if r.matches(peer.address, proto.upper(), port)]
            if not allowing:
                return Verdict(allowed=False, policies=isolation.policies, direction=direction)
            reasons += allowing
        return Verdict(allowed=True, policies=tuple(dict.fromkeys(reasons)))


def compile_policies(policies: Sequence[Mapping[str, Any]], pods: Sequence[PolicyPod]) -> Ruleset:
    """Resolve NetworkPolicy documents against the pods they are to act on.

    :raises UsageError: a field outside the supported subset, or of the wrong shape;
        names the policy and the field.
    """
    names = [pod.name for pod in pods]
    if len(set(names)) != len(names):
        raise ValueError(f"pod names repeat: {sorted(names)}")
    parsed = [_Policy.parse(document) for document in policies]
    isolated: dict[str, dict[str, Isolation]] = {}
    for direction in DIRECTIONS:
        isolated[direction] = {}
        for pod in pods:
            selecting = [p for p in parsed if direction in p.rules and p.selects(pod)]
            if selecting:
                rules = {rule for p in selecting for rule in p.resolve(direction, pod, pods)}
                isolated[direction][pod.name] = Isolation(
                    policies=tuple(p.name for p in selecting), rules=tuple(sorted(rules, key=_rule_key))
                )
    return Ruleset(pods=tuple(pods), isolated=isolated)


def to_nft(ruleset: Ruleset, priority: int = -160) -> str:
    """The ruleset as input for ``nft -f``: one table, hooked into the forward path.

    A dropped packet counts in ``drop_egress`` or ``drop_ingress`` and, by its source,
    destination, protocol and port, in the set ``dropped``. The table only drops: what
    it accepts goes on to the other chains of the hook.

    :param priority: after connection tracking (-200) and before mangle (-150), where a
        delay line may hold packets: a forbidden packet must neither wait in it nor
        take room from others.
    """
    lines = [
        f"table ip {NFT_TABLE} {{",
        "  counter established { }",
        *(f"  counter drop_{direction} {{ }}" for direction in DIRECTIONS),
        "  set dropped {",
        "    type ipv4_addr . ipv4_addr . inet_proto . inet_service",
        "    size 4096; flags dynamic; counter;",
        "  }",
        # Empty, for ztprobe.emulation.passing: were it made and removed when it is needed, the kernel
        # would drop all that queues hold (a delay line's packets) each time the hook goes.
        "  chain probes { type filter hook prerouting priority -300; }",
    ]
    maps: dict[str, list[str]] = {}
    for direction in DIRECTIONS:
        chains, maps[direction] = _chains(ruleset, direction)
        lines += chains
    lines += [
        "  chain forward {",
        f"    type filter hook forward priority {priority}; policy accept;",
        "    ct state established,related counter name established accept",
    ]
    for direction, address in zip(DIRECTIONS, ("saddr", "daddr"), strict=True):
        if maps[direction]:
            lines.append(f"    ip {address} vmap {{ {', '.join(maps[direction])} }}")
    return "\n".join([*lines, "  }", "}", ""])


def _chains(ruleset: Ruleset, direction: str) -> tuple[list[str], list[str]]:
    # Pods with the same rules share a chain: five clients read as one.
    groups: dict[Isolation, list[PolicyPod]] = {}
    for pod in ruleset.pods:
        if pod.name in ruleset.isolated[direction]:
            groups.setdefault(ruleset.isolated[direction][pod.name], []).append(pod)
    peer = "daddr" if direction == "egress" else "saddr"
    lines: list[str] = []
    jumps: list[str] = []
    for number, (isolation, pods) in enumerate(groups.items()):
        chain = f"{direction}_{number}"
        lines.append(f"  chain {chain} {{")
        for rule in isolation.rules:
            if rule.addresses != ():
                lines.append(f"    {_match(rule, peer)} counter return")
        lines += [
            # A rule of its own: once the set is full this one no longer matches, and the drop must.
            "    update @dropped { ip saddr . ip daddr . meta l4proto . th dport }",
            f"    counter name drop_{direction} drop",
            "  }",
        ]
        jumps += [f"{pod.address} : jump {chain}" for pod in pods]
    return lines, jumps


def _match(rule: Rule, peer: str) -> str:
    parts = []
    if rule.addresses is not None:
        parts.append(f"ip {peer} {{ {', '.join(rule.addresses)} }}")
    if rule.protocol is not None:
        protocol = rule.protocol.lower()
        parts.append(f"meta l4proto {protocol}" if rule.port is None else f"{protocol} dport {rule.port}")
    return " ".join(parts)


def _rule_key(rule: Rule) -> tuple[str, tuple[str, ...], str, int]:
    return rule.policy, rule.addresses or (), rule.protocol or "", rule.port or 0


@dataclass(frozen=True)
class _Where:
    # Which policy and field a message is about.
    policy: str
    path: str

    def __truediv__(self, name: str) -> _Where:
        return _Where(self.policy, f"{self.path}.{name}")

    def __getitem__(self, number: int) -> _Where:
        return _Where(self.policy, f"{self.path}[{number}]")

    def error(self, problem: str) -> UsageError:
        return UsageError(f"NetworkPolicy {self.policy}: field `{self.path}` {problem}")

    def mapping(self, value: Any, known: Iterable[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"is {value!r}, expected a mapping")
        for key in value:
            if key not in known:
                raise (self / str(key)).error("is not supported")
        return value

    def sequence(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.error(f"is {value!r}, expected a list")
        return value


@dataclass(frozen=True)
class _Selector:
    # (key, operator, values); all of them have to hold. Empty: everything.
    requirements: tuple[tuple[str, str, tuple[str, ...]], ...]

    @classmethod
    def parse(cls, value: Any, where: _Where) -> _Selector:
        value = where.mapping({} if value is None else value, ("matchLabels", "matchExpressions"))
        found: list[tuple[str, str, tuple[str, ...]]] = []
        labels = value.get("matchLabels") or {}
        if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
            raise (where / "matchLabels").error(f"is {labels!r}, expected label: text")
        found += [(key, "In", (label,)) for key, label in labels.items()]
        expressions = where / "matchExpressions"
        for number, item in enumerate(expressions.sequence(value.get("matchExpressions") or [])):
            here = expressions[number]
            item = here.mapping(item, ("key", "operator", "values"))
            operator, values = item.get("operator"), item.get("values") or []
            if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
                expected = "In, NotIn, Exists or DoesNotExist"
                raise (here / "operator").error(f"is {operator!r}, expected {expected}")
            if (operator in ("In", "NotIn")) != bool(values) or not isinstance(item.get("key"), str):
                raise here.error("needs a key, and values with In and NotIn only")
            found.append((item["key"], operator, tuple((here / "values").sequence(values))))
        return cls(tuple(found))

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(self._holds(labels, *requirement) for requirement in self.requirements)

    @staticmethod
    def _holds(labels: Mapping[str, str], key: str, operator: str, values: tuple[str, ...]) -> bool:
        if operator == "In":
            return labels.get(key) in values
        if operator == "NotIn":  # also true of a pod without the label
            return labels.get(key) not in values
        return (key in labels) == (operator == "Exists")


@dataclass(frozen=True)
class _Peer:
    pods: _Selector
    namespaces: _Selector | None  # None: the policy's own namespace

    @classmethod
    def parse(cls, value: Any, where: _Where) -> _Peer:
        value = where.mapping(value, ("podSelector", "namespaceSelector"))
        if not value:
            raise where.error("is empty, expected podSelector or namespaceSelector")
        namespaces = None
        if "namespaceSelector" in value:
            namespaces = _Selector.parse(value["namespaceSelector"], where / "namespaceSelector")
            for key, _, _ in namespaces.requirements:
                if key != _NAMESPACE_NAME:
                    here = where / "namespaceSelector"
                    raise here.error(f"uses {key}; only {_NAMESPACE_NAME} is supported")
        return cls(_Selector.parse(value.get("podSelector"), where / "podSelector"), namespaces)

    def selects(self, pod: PolicyPod, own_namespace: str) -> bool:
        if self.namespaces is None:
            return pod.namespace == own_namespace and self.pods.matches(pod.labels)
        return self.namespaces.matches({_NAMESPACE_NAME: pod.namespace}) and self.pods.matches(pod.labels)


@dataclass(frozen=True)
class _Port:
    protocol: str
    port: int | str | None

    @classmethod
    def parse(cls, value: Any, where: _Where) -> _Port:
        value = where.mapping(value, ("protocol", "port"))
        protocol, port = value.get("protocol", "TCP"), value.get("port")
        if protocol not in _PROTOCOLS:
            raise (where / "protocol").error(f"is {protocol!r}, expected {' or '.join(_PROTOCOLS)}")
        if isinstance(port, bool) or not isinstance(port, int | str | None):
            raise (where / "port").error(f"is {port!r}, expected a number or a name")
        if isinstance(port, int) and not 0 < port < 65536:
            raise (where / "port").error(f"is {port}, expected 1 to 65535")
        return cls(protocol, port)


@dataclass(frozen=True)
class _Allow:
    peers: tuple[_Peer, ...]  # empty: everyone
    ports: tuple[_Port, ...]  # empty: every port of every protocol


@dataclass(frozen=True)
class _Policy:
    name: str
    namespace: str
    selector: _Selector
    # Only the directions in which the policy isolates.
    rules: Mapping[str, tuple[_Allow, ...]]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> _Policy:
        metadata = document.get("metadata") or {}
        name = str(metadata.get("name", "(no name)"))
        if document.get("kind") != "NetworkPolicy" or document.get("apiVersion") != "networking.k8s.io/v1":
            kind = f"{document.get('apiVersion')} {document.get('kind')}"
            raise UsageError(f"NetworkPolicy {name}: is {kind}, expected networking.k8s.io/v1 NetworkPolicy")
        where = _Where(name, "spec")
        spec = where.mapping(document.get("spec"), ("podSelector", "policyTypes", *DIRECTIONS))
        types = spec.get("policyTypes")
        if types is None:  # the API server's default
            types = ["Ingress", *(["Egress"] if "egress" in spec else [])]
        for kind in (where / "policyTypes").sequence(types):
            if kind not in ("Ingress", "Egress"):
                raise (where / "policyTypes").error(f"has {kind!r}, expected Ingress or Egress")
        rules = {}
        for direction, side in zip(DIRECTIONS, ("to", "from"), strict=True):
            here = where / direction
            allows = [
                cls._allow(item, side, here[n])
                for n, item in enumerate(here.sequence(spec.get(direction) or []))
            ]
            if direction.capitalize() in types:
                rules[direction] = tuple(allows)
        return cls(
            name,
            str(metadata.get("namespace", "default")),
            _Selector.parse(spec.get("podSelector"), where / "podSelector"),
            rules,
        )

    @staticmethod
    def _allow(value: Any, side: str, where: _Where) -> _Allow:
        value = where.mapping(value, (side, "ports"))
        here, ports = where / side, where / "ports"
        return _Allow(
            tuple(_Peer.parse(v, here[n]) for n, v in enumerate(here.sequence(value.get(side) or []))),
            tuple(_Port.parse(v, ports[n]) for n, v in enumerate(ports.sequence(value.get("ports") or []))),
        )

    def selects(self, pod: PolicyPod) -> bool:
        return pod.namespace == self.namespace and self.selector.matches(pod.labels)

    def resolve(self, direction: str, pod: PolicyPod, pods: Sequence[PolicyPod]) -> Iterable[Rule]:
        for allow in self.rules[direction]:
            peers = [p for p in pods if any(peer.selects(p, self.namespace) for peer in allow.peers)]
            addresses = tuple(sorted(p.address for p in peers)) if allow.peers else None
            if not allow.ports:
                yield Rule(policy=self.name, addresses=addresses, protocol=None, port=None)
            for port in allow.ports:
                if not isinstance(port.port, str):
                    yield Rule(policy=self.name, addresses=addresses, protocol=port.protocol, port=port.port)
                    continue
                # A name means what the receiver calls so: this pod, or each peer for itself.
                key = (port.protocol, port.port)
                receivers = [pod] if direction == "ingress" else peers if allow.peers else pods
                for receiver in receivers:
                    if key in receiver.ports:
                        where = addresses if direction == "ingress" else (receiver.address,)
                        number = receiver.ports[key]
                        yield Rule(policy=self.name, addresses=where, protocol=port.protocol, port=number)
