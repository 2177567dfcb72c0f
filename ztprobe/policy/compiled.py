"""Policies compiled against endpoints: the one form that explanations, bulk verdicts and filters read.

A compiled rule names the sets of endpoints that it is about (`ztprobe.policy.selections`); names of
ports are resolved, per number, to sets of the pods that have them. A policy selects its subjects
by a set too, and endpoints that the same policies select are one *class*, for which rules are
read once. Policies and endpoints can be added and replaced at any time. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from ztprobe.policy.compiled_rules import CompiledPolicy, CompiledPort, CompiledRule, PolicyGroup
from ztprobe.policy.model import (
    DIRECTIONS,
    ClusterPod,
    IPAddress,
    NetworkPeer,
    Objects,
    Policy,
    PortMatch,
)
from ztprobe.policy.selections import Bits, Endpoint, NamedPort, Selections

__all__ = ("Compiled",)

_SPARE_SLOTS = 1000
_NOBODY = PolicyGroup(())


class Compiled:
    """Objects, compiled; slots are endpoints' numbers (see `ztprobe.policy.selections`)."""

    def __init__(self, objects: Objects) -> None:
        pods = [pod for pod in objects.pods if not pod.ended]
        self.selections = Selections(
            objects.namespaces, objects.nodes, sum(len(pod.addresses) or 1 for pod in pods)
        )
        self.policies: dict[int, CompiledPolicy] = {}  # serial -> policy
        self.slots: dict[str, tuple[int, ...]] = {}  # of a pod, one per address
        # direction -> class of each slot; class 0: no policy selects it
        self._classes: dict[str, npt.NDArray[np.int32]] = {d: np.zeros(64, np.int32) for d in DIRECTIONS}
        self._groups: dict[str, list[PolicyGroup]] = {d: [_NOBODY] for d in DIRECTIONS}
        self._class_ids: dict[str, dict[PolicyGroup, int]] = {d: {_NOBODY: 0} for d in DIRECTIONS}
        self._serials: dict[str, int] = {}
        self._subjects: dict[str, dict[int, set[int]]] = {d: {} for d in DIRECTIONS}  # set -> serials
        self._next_serial = 0
        self._outside: dict[IPAddress, int] = {}
        self.others = False  # whether there are endpoints that selectors of pods do not mean
        self.owners: npt.NDArray[np.int32] = np.zeros(64, np.int32)  # of each slot: the pod that it is of
        self._owner_count = 0
        # Told of a policy whose rules now mean other endpoints, by whoever keeps what it read.
        self.on_change: Callable[[CompiledPolicy], None] | None = None
        for pod in pods:
            self._add_pod(pod)
        for policy in objects.policies:
            self._compile(policy)
        self._classify_all()

    @property
    def objects(self) -> Objects:
        """What it is made of by now: a new `Compiled` of it is as good, and has no slots of the past."""
        endpoints = self.selections.endpoints
        pods = [endpoints[slots[0]].pod for slots in self.slots.values()]
        return Objects(
            pods=tuple(pod for pod in pods if pod is not None),
            namespaces=self.selections.namespaces,
            nodes=self.selections.nodes,
            policies=tuple(one.policy for one in self.policies.values()),
        )

    @property
    def worn(self) -> bool:
        """Whether most slots are of pods as they were before they changed: time for a new one."""
        live = sum(map(len, self.slots.values())) + len(self._outside)
        return len(self.selections.endpoints) > 2 * live + _SPARE_SLOTS

    # -- endpoints

    def _add_pod(self, pod: ClusterPod) -> None:
        self.others |= pod.host_network
        self._owner_count += 1
        addresses: tuple[IPAddress | None, ...] = pod.addresses or (None,)
        self.slots[pod.id] = tuple(self._add(Endpoint(pod, address)) for address in addresses)

    def _add(self, endpoint: Endpoint) -> int:
        numbers = self.selections.numbers_seen
        slot = self.selections.add(endpoint)
        if self.policies and self.selections.numbers_seen != numbers:
            self._resolve_names_again()
        if slot >= len(self.owners):
            room = np.zeros(len(self.owners), np.int32)
            self.owners = np.concatenate([self.owners, room])
            self._classes = {d: np.concatenate([found, room]) for d, found in self._classes.items()}
        self.owners[slot] = self._owner_count
        return slot

    def put_pod(self, pod: ClusterPod) -> None:
        """Take in a new pod, or one that changed."""
        self.slots.pop(pod.id, None)
        if pod.ended:
            return
        others = self.others
        self._add_pod(pod)
        if self.others and not others:
            self._classify_all()
        else:
            self._classify(self.slots[pod.id])

    def remove_pod(self, pod: str) -> None:
        """Forget a pod (by ``namespace/name``)."""
        del self.slots[pod]

    def slot_of_address(self, address: IPAddress) -> int:
        """The slot of an address outside."""
        slot = self._outside.get(address)
        if slot is None:
            self._owner_count += 1
            slot = self._outside[address] = self._add(Endpoint(None, address))
            if not self.others:
                self.others = True
                self._classify_all()
        return slot

    # -- policies

    def put_policy(self, policy: Policy) -> None:
        """Take in a new policy, or one that changed."""
        self.remove_policy(policy.id)
        one = self._compile(policy)
        self._reclassify(one, add=True)

    def remove_policy(self, policy: str) -> None:
        """Forget a policy (by its id), if it is there."""
        serial = self._serials.pop(policy, None)
        if serial is not None:
            one = self.policies.pop(serial)
            for direction in one.rules:
                self._subjects[direction][one.subjects].discard(serial)
            self._reclassify(one, add=False)

    def _compile(self, policy: Policy) -> CompiledPolicy:
        serial = self._next_serial
        self._next_serial += 1
        one = CompiledPolicy(
            policy=policy,
            serial=serial,
            subjects=self.selections.id_of(policy.subject),
            rules=self._compiled_rules(policy),
            names_ports=any(p.name for r in policy.rules.get("ingress", ()) for p in r.ports or ()),
        )
        self.policies[serial] = one
        self._serials[policy.id] = serial
        for direction in one.rules:
            self._subjects[direction].setdefault(one.subjects, set()).add(serial)
        return one

    def _compiled_rules(self, policy: Policy) -> dict[str, tuple[CompiledRule, ...]]:
        return {
            direction: tuple(
                CompiledRule(
                    number,
                    rule.action,
                    None if rule.peers is None else tuple(self._peer_ids(rule.peers)),
                    None if rule.ports is None else tuple(p for one in rule.ports for p in self._ports(one)),
                )
                for number, rule in enumerate(rules)
            )
            for direction, rules in policy.rules.items()
        }

    def _peer_ids(self, peers: tuple[object, ...]) -> Iterator[int]:
        for peer in peers:
            if isinstance(peer, NetworkPeer):
                yield from (self.selections.id_of(block) for block in peer.blocks)
            else:
                yield self.selections.id_of(peer)  # type: ignore[arg-type]

    def _ports(self, port: PortMatch) -> Iterator[CompiledPort]:
        if port.name is None:
            assert port.protocol is not None
            yield CompiledPort(port.protocol, port.first, port.last)
            return
        for protocol in ("TCP", "UDP", "SCTP") if port.protocol is None else (port.protocol,):
            for number in sorted(self.selections.port_numbers.get((protocol, port.name), ())):
                receivers = self.selections.id_of(NamedPort(protocol, port.name, number))
                yield CompiledPort(protocol, number, number, receivers, port.name)
            # Nobody has it under number 0, but pods whose names are not known may have any.
            receivers = self.selections.id_of(NamedPort(protocol, port.name, 0))
            yield CompiledPort(protocol, 0, 65535, receivers, port.name, unsure=True)

    def _resolve_names_again(self) -> None:
        # A pod came with another number for some name.
        for serial, one in list(self.policies.items()):
            if any(p.name for rules in one.policy.rules.values() for r in rules for p in r.ports or ()):
                self.policies[serial] = CompiledPolicy(
                    one.policy, serial, one.subjects, self._compiled_rules(one.policy), one.names_ports
                )
                if self.on_change is not None:
                    self.on_change(self.policies[serial])

    def serial_of(self, policy: str) -> int:
        """A policy's serial, by its id; -1: there is no such policy."""
        return self._serials.get(policy, -1)

    # -- classes

    def classes(self, direction: str) -> npt.NDArray[np.int32]:
        """The class of every slot; 0: no policy selects it."""
        return self._classes[direction]

    def class_count(self, direction: str) -> int:
        """How many classes there have been."""
        return len(self._groups[direction])

    def group(self, direction: str, number: int) -> PolicyGroup:
        """What a class has in common."""
        return self._groups[direction][number]

    def classes_with(self, serial: int, direction: str) -> list[int]:
        """The classes that a policy selects."""
        return [n for n, group in enumerate(self._groups[direction]) if serial in group.serials]

    def group_of(self, slot: int, direction: str) -> PolicyGroup:
        """The policies that select an endpoint, and what else counts of it."""
        return self._groups[direction][int(self._classes[direction][slot])]

    def _order(self, serials: set[int]) -> tuple[int, ...]:
        return tuple(sorted(serials, key=lambda serial: (self.policies[serial].rank, serial)))

    def _classify_all(self) -> None:
        sure: dict[str, list[set[int]]] = {d: [set() for _ in self.selections.endpoints] for d in DIRECTIONS}
        unsure: dict[str, dict[int, set[int]]] = {d: {} for d in DIRECTIONS}
        for serial, one in self.policies.items():
            inside, maybe = self.selections.slots(one.subjects)
            for direction in one.rules:
                found = sure[direction]
                for slot in inside.tolist():
                    found[slot].add(serial)
                for slot in maybe.tolist():
                    found[slot].add(serial)
                    unsure[direction].setdefault(slot, set()).add(serial)
        for direction in DIRECTIONS:
            classes = self._classes[direction]
            for slot, serials in enumerate(sure[direction]):
                doubtful = unsure[direction].get(slot, set())
                classes[slot] = self._class_of(direction, slot, serials, doubtful)

    def _classify(self, slots: tuple[int, ...]) -> None:
        for direction in DIRECTIONS:
            for slot in slots:
                subjects = self._subjects[direction]
                inside, maybe = self.selections.sets_with(slot)
                unsure = {serial for number in maybe for serial in subjects.get(number, ())}
                serials = {serial for number in inside for serial in subjects.get(number, ())} | unsure
                self._classes[direction][slot] = self._class_of(direction, slot, serials, unsure)

    def _reclassify(self, one: CompiledPolicy, add: bool) -> None:
        change = set.add if add else set.discard
        inside, maybe = self.selections.slots(one.subjects)
        doubtful = set(maybe.tolist())
        for direction in one.rules:
            classes, groups = self._classes[direction], self._groups[direction]
            # What a class turns into, unless the endpoint itself counts.
            alike = not doubtful and not (direction == "ingress" and (self.others or one.names_ports))
            known: dict[int, int] = {}
            for slot in [*inside.tolist(), *doubtful]:
                before = int(classes[slot])
                if not alike or before not in known:
                    serials, unsure = set(groups[before].serials), set(groups[before].unsure)
                    change(serials, one.serial)
                    if slot in doubtful:
                        change(unsure, one.serial)
                    known[before] = self._class_of(direction, slot, serials, unsure)
                classes[slot] = known[before]

    def _class_of(self, direction: str, slot: int, serials: set[int], unsure: set[int]) -> int:
        if not serials:
            return 0
        named: frozenset[tuple[str, str, int]] | None = frozenset()
        node: tuple[str | None, tuple[IPAddress, ...]] = (None, ())
        if direction == "ingress":
            pod = self.selections.endpoints[slot].pod
            assert pod is not None  # only pods are selected
            if any(self.policies[serial].names_ports for serial in serials):
                named = pod.named_ports
            if self.others:
                node = (pod.node, pod.node_addresses)
        ordered = self._order(serials)
        group = PolicyGroup(ordered, tuple(s for s in ordered if s in unsure), named, node)
        ids = self._class_ids[direction]
        number = ids.get(group)
        if number is None:
            number = ids[group] = len(self._groups[direction])
            self._groups[direction].append(group)
        return number

    # -- what both explanations and bulk verdicts ask

    def port_matches(self, rule: CompiledRule, receiver: int, protocol: str, port: int) -> bool | None:
        """Whether a rule is about a protocol and port of an endpoint (its slot); None: not known."""
        if rule.ports is None:
            return True
        found: bool | None = False
        for one in rule.ports:
            if one.protocol != protocol or not one.first <= port <= one.last:
                continue
            held = True if one.receivers is None else self.selections.holds(one.receivers, receiver)
            if held:
                return True
            if held is None:
                found = None
        return found

    def peer_matches(self, rule: CompiledRule, peer: int) -> bool | None:
        """Whether a rule is about an endpoint (its slot) at the other end; None: not known."""
        if rule.peers is None:
            return True
        found: bool | None = False
        for number in rule.peers:
            held = self.selections.holds(number, peer)
            if held:
                return True
            if held is None:
                found = None
        return found

    def from_own_node(self, source: int, target: int) -> bool | None:
        """Whether a source is the target pod's own node, which NetworkPolicies let in; None: not known."""
        pod = self.selections.endpoints[target].pod
        return pod is not None and _is_node(self.selections.endpoints[source], pod.node, pod.node_addresses)

    def node_rows(self, node: tuple[str | None, tuple[IPAddress, ...]]) -> tuple[Bits, Bits]:
        """The rows of the endpoints that are this node, and of those that may be (see `from_own_node`)."""
        found = {
            slot: _is_node(endpoint, *node)
            for slot, endpoint in enumerate(self.selections.endpoints)
            if not endpoint.selectable
        }
        sure = self.selections.row_of_slots(slot for slot, one in found.items() if one)
        return sure, self.selections.row_of_slots(slot for slot, one in found.items() if one is not False)


def _is_node(endpoint: Endpoint, name: str | None, addresses: tuple[IPAddress, ...]) -> bool | None:
    if endpoint.selectable:
        return False
    if endpoint.address is not None and endpoint.address in addresses:
        return True
    if endpoint.pod is None:  # outside, unless something says otherwise
        return False
    return None if endpoint.pod.node is None or name is None else endpoint.pod.node == name
