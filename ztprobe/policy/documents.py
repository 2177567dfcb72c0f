"""NetworkPolicy documents: read, and resolved against pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ztprobe.errors import UsageError
from ztprobe.policy.rules import DIRECTIONS, Isolation, PolicyPod, Rule, Ruleset

__all__ = ("compile_policies",)

_PROTOCOLS = ("TCP", "UDP")
_SHOWN = 3  # pods in a message
_NAMESPACE_NAME = "kubernetes.io/metadata.name"


def compile_policies(policies: Sequence[Mapping[str, Any]], pods: Sequence[PolicyPod]) -> Ruleset:
    """Resolve NetworkPolicy documents against the pods they are to act on.

    :raises UsageError: a field outside the supported subset, of the wrong shape, or with a
        port name that no pod has; names the policy and the field.
    """
    names = [pod.name for pod in pods]
    if len(set(names)) != len(names):
        raise ValueError(f"pod names repeat: {sorted(names)}")
    parsed = [_Policy.parse(document) for document in policies]
    for one in parsed:
        one.check_port_names(pods)
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
            if not all(isinstance(value, str) for value in (here / "values").sequence(values)):
                raise (here / "values").error(f"is {values!r}, expected a list of texts")
            found.append((item["key"], operator, tuple(values)))
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
        if all(selector is None for selector in value.values()):
            raise where.error("is empty, expected podSelector or namespaceSelector")
        namespaces = None
        if value.get("namespaceSelector") is not None:
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
    where: _Where

    @classmethod
    def parse(cls, value: Any, where: _Where) -> _Port:
        value = where.mapping(value, ("protocol", "port"))
        protocol, port = value.get("protocol"), value.get("port")
        protocol = "TCP" if protocol is None else protocol
        if protocol not in _PROTOCOLS:
            raise (where / "protocol").error(f"is {protocol!r}, expected {' or '.join(_PROTOCOLS)}")
        if isinstance(port, bool) or not isinstance(port, int | str | None):
            raise (where / "port").error(f"is {port!r}, expected a number or a name")
        if isinstance(port, int) and not 0 < port < 65536:
            raise (where / "port").error(f"is {port}, expected 1 to 65535")
        return cls(protocol, port, where / "port")

    def check_name(self, receivers: Sequence[PolicyPod]) -> None:
        if receivers and all((self.protocol, self.port) not in pod.ports for pod in receivers):
            raise self.where.error(
                f"is {self.port!r}, and no pod that it is about has a {self.protocol} port of that name: "
                + _listed([f"{pod.name} has {_port_names(pod)}" for pod in receivers])
            )


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
        # The API server's default, for an empty list too; and `egress: []` asks for no isolation there.
        types = (where / "policyTypes").sequence(spec.get("policyTypes") or [])
        types = types or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        for kind in types:
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
            str(metadata.get("namespace") or "default"),
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

    def check_port_names(self, pods: Sequence[PolicyPod]) -> None:
        selected = [pod for pod in pods if self.selects(pod)]
        for direction, allows in self.rules.items() if selected else ():
            for allow in allows:
                receivers = self._receivers(direction, allow, selected, pods)
                for port in allow.ports:
                    if isinstance(port.port, str):
                        port.check_name(receivers)

    def _peers(self, allow: _Allow, pods: Sequence[PolicyPod]) -> list[PolicyPod]:
        return [p for p in pods if any(peer.selects(p, self.namespace) for peer in allow.peers)]

    def _receivers(
        self, direction: str, allow: _Allow, selected: Sequence[PolicyPod], pods: Sequence[PolicyPod]
    ) -> Sequence[PolicyPod]:
        # Whose names of ports a rule means: the selected pods' own, or the peers'.
        if direction == "ingress":
            return selected
        return self._peers(allow, pods) if allow.peers else pods

    def resolve(self, direction: str, pod: PolicyPod, pods: Sequence[PolicyPod]) -> Iterable[Rule]:
        for allow in self.rules[direction]:
            peers = self._peers(allow, pods)
            addresses = tuple(sorted(p.address for p in peers)) if allow.peers else None
            if not allow.ports:
                yield Rule(policy=self.name, addresses=addresses, protocol=None, port=None)
            for port in allow.ports:
                if not isinstance(port.port, str):
                    yield Rule(policy=self.name, addresses=addresses, protocol=port.protocol, port=port.port)
                    continue
                key = (port.protocol, port.port)
                for receiver in self._receivers(direction, allow, [pod], pods):
                    if key in receiver.ports:
                        where = addresses if direction == "ingress" else (receiver.address,)
                        number = receiver.ports[key]
                        yield Rule(policy=self.name, addresses=where, protocol=port.protocol, port=number)


def _port_names(pod: PolicyPod) -> str:
    return ", ".join(f"{name}/{protocol}" for protocol, name in sorted(pod.ports)) or "none"


def _listed(items: Sequence[str]) -> str:
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more
