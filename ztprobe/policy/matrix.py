"""Who reaches whom: verdicts between all pods, those that no policy tells apart taken together. Pure.

Pods form a group where they are in the same sets (so every policy treats them alike, as subjects and
as peers), in one namespace, with the same ports: a workload's replicas, as a rule. An address of the
outside world stands for all that no network in a policy means. Targets are asked for the ports of
their containers, for those that rules about them name, and for one that nobody named.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ztprobe.errors import UsageError
from ztprobe.policy.bulk import CODES, Verdicts
from ztprobe.policy.model import DIRECTIONS, PROTOCOLS, ClusterPod, Objects

__all__ = ("OTHER_PORT", "Matrix", "MatrixCell", "PodGroup", "reach")

OTHER_PORT = 0  # stands for a port that neither a container nor a rule names
_OUTSIDE = ipaddress.ip_address("192.0.2.1")  # TEST-NET-1: nobody's
_MOST_GROUPS = 400
_MOST_PORTS = 40  # of one group


@dataclass(frozen=True, kw_only=True)
class PodGroup:
    """Pods that every policy treats alike."""

    name: str
    pods: tuple[str, ...]  # none: the outside world
    ports: tuple[tuple[int, str], ...]  # (number, protocol) to ask for


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """A verdict between two groups."""

    source: int
    target: int
    port: int
    protocol: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """All of them; of a pod alone in its group, not to itself."""

    groups: tuple[PodGroup, ...]
    cells: tuple[MatrixCell, ...]


def reach(objects: Objects) -> Matrix:
    """The verdicts between all groups.

    :raises UsageError: no pods, or too many groups for anybody to look at.
    """
    verdicts = Verdicts(objects)
    members = _grouped(verdicts, objects)
    if not members:
        raise UsageError("the objects given have no pods, so nobody reaches anybody")
    if len(members) > _MOST_GROUPS:
        raise UsageError(
            f"expected at most {_MOST_GROUPS} groups of pods that policies treat alike, found {len(members)};"
            " give the objects of fewer namespaces"
        )
    outside = verdicts.compiled.slot_of_address(_OUTSIDE)
    groups, slots = [], []
    for pods in members:
        groups.append(
            PodGroup(name=_name(pods), pods=tuple(p.id for p in pods), ports=_ports(verdicts, pods[0]))
        )
        slots.append([verdicts.compiled.slots[pod.id][0] for pod in pods[:2]])
    groups.append(PodGroup(name="outside", pods=(), ports=((OTHER_PORT, "TCP"),)))
    slots.append([outside])
    asked = list(_questions(groups, slots))
    unnamed = _unnamed_port(verdicts, objects)
    codes = verdicts.verdicts(
        np.array([slots[s][0] for s, _, _, _ in asked]),
        np.array([slots[t][s == t] for s, t, _, _ in asked]),
        np.array([PROTOCOLS.index(protocol) for _, _, _, protocol in asked]),
        np.array([port or unnamed for _, _, port, _ in asked]),
    )
    cells = tuple(
        MatrixCell(source=s, target=t, port=port, protocol=protocol, verdict=CODES[code])
        for (s, t, port, protocol), code in zip(asked, codes.tolist(), strict=True)
    )
    return Matrix(groups=tuple(groups), cells=cells)


def _questions(groups: list[PodGroup], slots: list[list[int]]) -> Iterator[tuple[int, int, int, str]]:
    for target, group in enumerate(groups):
        for port, protocol in group.ports:
            for source in range(len(groups)):
                if source != target or len(slots[target]) > 1:
                    yield source, target, port, protocol


def _grouped(verdicts: Verdicts, objects: Objects) -> list[list[ClusterPod]]:
    compiled = verdicts.compiled
    found: dict[object, list[ClusterPod]] = {}
    for pod in sorted((p for p in objects.pods if p.id in compiled.slots), key=lambda p: p.id):
        alike = tuple(
            (
                tuple(map(tuple, compiled.selections.sets_with(slot))),
                *(int(compiled.classes(direction)[slot]) for direction in DIRECTIONS),
            )
            for slot in compiled.slots[pod.id]
        )
        # A node's own pods reach what runs there, so host-network pods stay apart by node.
        node = pod.node if pod.host_network else None
        key = (pod.namespace, pod.host_network, node, pod.container_ports, pod.named_ports, alike)
        found.setdefault(key, []).append(pod)
    return list(found.values())


def _name(pods: list[ClusterPod]) -> str:
    if len(pods) == 1:
        return pods[0].id
    first, last = pods[0].name, pods[-1].name  # in order, so what these share all share
    common = next((first[:n] for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), first)
    return f"{pods[0].namespace}/{common}* ({len(pods)})"


def _ports(verdicts: Verdicts, pod: ClusterPod) -> tuple[tuple[int, str], ...]:
    compiled = verdicts.compiled
    slot = compiled.slots[pod.id][0]
    found = {(number, protocol) for protocol, number in pod.container_ports if protocol in PROTOCOLS}
    for one in compiled.policies.values():
        for direction, rules in one.rules.items():
            for rule in rules:
                about = (
                    compiled.selections.holds(one.subjects, slot)
                    if direction == "ingress"
                    else rule.peers is not None and compiled.peer_matches(rule, slot)
                )
                for port in (rule.ports or ()) if about else ():
                    if port.receivers is None and port.first > 0:
                        found |= {(port.first, port.protocol), (port.last, port.protocol)}
    ordered = sorted(found, key=lambda one: (one[0], PROTOCOLS.index(one[1])))
    return (*ordered[:_MOST_PORTS], (OTHER_PORT, "TCP"))


def _unnamed_port(verdicts: Verdicts, objects: Objects) -> int:
    named = {number for pod in objects.pods for _, number in pod.container_ports}
    for one in verdicts.compiled.policies.values():
        for rules in one.rules.values():
            for rule in rules:
                for port in rule.ports or ():
                    if port.last - port.first < 60000:
                        named.update(range(port.first, port.last + 1))
    return next(number for number in range(65535, 0, -1) if number not in named)
