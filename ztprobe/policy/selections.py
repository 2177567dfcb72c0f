"""Who matches what: for every peer, subject and port name of policies, the set of endpoints that match.

An endpoint is a pod with one of its addresses (a dual-stack pod is two), or an address outside.
Each has a *slot*, a bit in every set, which never changes: a pod that changes gets a new slot, so
no set is ever searched for its old one. Sets are rows of bits; labels have rows of their own, of
which a selector is an intersection. What a manifest does not tell is neither in nor out: such a set
has a second row of those that may be in it. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ztprobe.label_selectors import LabelSelector
from ztprobe.policy.labels import NAMESPACE_NAME
from ztprobe.policy.model import (
    AddressBlock,
    ClusterPod,
    DomainPeer,
    IPAddress,
    Namespace,
    Node,
    NodePeer,
    PodPeer,
)

__all__ = ("Bits", "Endpoint", "NamedPort", "Selectable", "Selections")

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Endpoint:
    """One end of connections."""

    pod: ClusterPod | None  # None: outside
    address: IPAddress | None  # None: not known (of a pod)

    @property
    def selectable(self) -> bool:
        """Whether selectors of pods can mean it: a host-network pod is its node to the network."""
        return self.pod is not None and not self.pod.host_network

    @property
    def name(self) -> str:
        """The pod's ``namespace/name``, or the address."""
        return self.pod.id if self.pod is not None else str(self.address)


@dataclass(frozen=True, slots=True)
class NamedPort:
    """Pods with a container port of this name and number."""

    protocol: str
    name: str
    number: int


Selectable = PodPeer | AddressBlock | NodePeer | DomainPeer | NamedPort


class Selections:
    """The sets, and the endpoints that they are made of."""

    def __init__(self, namespaces: Iterable[Namespace], nodes: Iterable[Node], room: int = 64) -> None:
        self.endpoints: list[Endpoint] = []
        self._namespaces: Mapping[str, Namespace] = {one.name: one for one in namespaces}
        self.nodes = tuple(nodes)
        self._bytes = max(16, (room + room // 4 + 7) // 8)
        self._rows: Bits = np.zeros((64, self._bytes), np.uint8)
        self._maybe: dict[int, Bits] = {}
        self._ids: dict[Selectable, int] = {}
        self._keys: list[Selectable] = []
        self._selectable: list[int] = []
        self._by_namespace: dict[str, list[int]] = defaultdict(list)
        self._by_label: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._by_key: dict[str, list[int]] = defaultdict(list)
        self._part_rows: dict[Any, Bits] = {}  # of labels, namespaces; kept where a selector used them
        self._namespace_rows: dict[LabelSelector, tuple[Bits, Bits]] = {}
        self._pivots: dict[Any, list[int]] = defaultdict(list)
        # (protocol, port name) -> numbers that some pod has for it
        self.port_numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
        self.numbers_seen = 0  # how many there are of all names
        self._everyone: Bits | None = None
        self._sorted: dict[int, tuple[list[int], list[int]]] | None = None

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """Those whose labels are known."""
        return tuple(self._namespaces.values())

    @property
    def row_bytes(self) -> int:
        """Length of every row."""
        return self._bytes

    # -- endpoints

    def add(self, endpoint: Endpoint) -> int:
        """Take in an endpoint; its slot."""
        slot = len(self.endpoints)
        if slot >= 8 * self._bytes:
            self._widen()
        self.endpoints.append(endpoint)
        self._sorted = self._everyone = None
        pod = endpoint.pod
        if pod is not None and endpoint.selectable:
            for protocol, name, number in pod.named_ports or ():
                numbers = self.port_numbers[protocol, name]
                self.numbers_seen += number not in numbers
                numbers.add(number)
            parts: list[tuple[Any, list[int]]] = [
                ("selectable", self._selectable),
                (("namespace", pod.namespace), self._by_namespace[pod.namespace]),
            ]
            for key, value in pod.labels.items():
                parts += [((key, value), self._by_label[key, value]), (("key", key), self._by_key[key])]
            for part, slots in parts:
                slots.append(slot)
                if (row := self._part_rows.get(part)) is not None:
                    _set(row, slot)
            if pod.namespace not in self._namespaces or len(self._by_namespace[pod.namespace]) == 1:
                self._namespace_rows.clear()
            else:
                for selector, rows in self._namespace_rows.items():
                    if selector.matches(self._namespaces[pod.namespace].labels):
                        for row in rows:
                            _set(row, slot)
        for number in self._candidates(endpoint):
            found = self.matches(self._keys[number], endpoint)
            if found:
                _set(self._rows[number], slot)
            if number in self._maybe:
                if found is not False:
                    _set(self._maybe[number], slot)
            elif found is None:
                self._maybe[number] = self._rows[number].copy()
                _set(self._maybe[number], slot)
        return slot

    def _widen(self) -> None:
        more = self._bytes // 2 + 16

        def wider(row: Bits) -> Bits:
            return np.concatenate([row, np.zeros(more, np.uint8)])

        self._rows = np.concatenate([self._rows, np.zeros((len(self._rows), more), np.uint8)], axis=1)
        self._maybe = {number: wider(row) for number, row in self._maybe.items()}
        self._part_rows = {part: wider(row) for part, row in self._part_rows.items()}
        self._namespace_rows.clear()
        self._bytes += more

    # -- sets

    def id_of(self, key: Selectable) -> int:
        """The number of a set, which is made where it is new."""
        number = self._ids.get(key)
        if number is None:
            number = self._ids[key] = len(self._keys)
            self._keys.append(key)
            if number == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            sure, maybe = self._find(key)
            self._rows[number] = sure
            if maybe is not sure and not np.array_equal(sure, maybe):
                self._maybe[number] = maybe.copy()
            for pivot in _pivots(key):
                self._pivots[pivot].append(number)
        return number

    def key_of(self, number: int) -> Selectable:
        """What a set is of."""
        return self._keys[number]

    def rows(self, number: int) -> tuple[Bits, Bits]:
        """The rows of those in a set, and of those that may be in it (the same row, where all is known)."""
        sure = self._rows[number]
        return sure, self._maybe.get(number, sure)

    def holds(self, number: int, slot: int) -> bool | None:
        """Whether an endpoint is in a set; None: not known."""
        if _get(self._rows[number], slot):
            return True
        return None if number in self._maybe and _get(self._maybe[number], slot) else False

    def sets_with(self, slot: int) -> tuple[list[int], list[int]]:
        """The numbers of the sets that an endpoint is in, and of those that it may be in besides."""
        column = self._rows[: len(self._keys), slot >> 3] >> (slot & 7) & 1
        inside = np.flatnonzero(column).tolist()
        return inside, [n for n, row in self._maybe.items() if _get(row, slot) and not column[n]]

    def slots(self, number: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The slots in a set, and those that may be in it besides."""
        sure, maybe = self.rows(number)
        inside = np.flatnonzero(np.unpackbits(sure, bitorder="little"))
        return inside, inside[:0] if maybe is sure else np.flatnonzero(
            np.unpackbits(maybe & ~sure, bitorder="little")
        )

    def everyone(self) -> Bits:
        """The row of all slots."""
        if self._everyone is None:
            row = np.zeros(8 * self._bytes, np.uint8)
            row[: len(self.endpoints)] = 1
            self._everyone = np.packbits(row, bitorder="little")
        return self._everyone

    def row_of_slots(self, slots: Iterable[int]) -> Bits:
        """A row of its own."""
        row = np.zeros(8 * self._bytes, np.uint8)
        row[list(slots)] = 1
        return np.packbits(row, bitorder="little")

    def matches(self, key: Selectable, endpoint: Endpoint) -> bool | None:
        """Whether an endpoint belongs to a set, found without the set; None: not known."""
        pod = endpoint.pod
        if isinstance(key, PodPeer):
            if pod is None or pod.host_network or not key.pods.matches(pod.labels):
                return False
            if key.namespace is not None:
                return pod.namespace == key.namespace
            return self.namespace_matches(key.namespaces, pod.namespace)
        if isinstance(key, NamedPort):
            if pod is None or pod.host_network:
                return False
            if pod.named_ports is None:
                return None
            return (key.protocol, key.name, key.number) in pod.named_ports
        if isinstance(key, AddressBlock):
            return None if endpoint.address is None else key.contains(endpoint.address)
        if isinstance(key, DomainPeer):
            return None
        return self._node_matches(key, endpoint)

    def _node_matches(self, key: NodePeer, endpoint: Endpoint) -> bool | None:
        if endpoint.selectable:
            return False
        if endpoint.address is None and endpoint.pod is not None and endpoint.pod.node is not None:
            named = [node for node in self.nodes if node.name == endpoint.pod.node]
            return key.nodes.matches(named[0].labels) if named else None
        if endpoint.address is None or not self.nodes:
            return None
        return any(endpoint.address in n.addresses for n in self.nodes if key.nodes.matches(n.labels))

    def namespace_matches(self, selector: LabelSelector, namespace: str) -> bool | None:
        """Whether a namespace has such labels; None: its labels are not known (but its name is)."""
        known = self._namespaces.get(namespace)
        if known is not None:
            return selector.matches(known.labels)
        found: bool | None = True
        for requirement in selector.requirements:
            if requirement.key != NAMESPACE_NAME:
                found = None
            elif not requirement.matches({NAMESPACE_NAME: namespace}):
                return False
        return found

    # -- how sets are found

    def _find(self, key: Selectable) -> tuple[Bits, Bits]:
        if isinstance(key, PodPeer):
            row = self._pods_row(key.pods)
            if key.namespace is not None:
                found = row & self._part(("namespace", key.namespace))
                return found, found
            sure, maybe = self._namespaces_row(key.namespaces)
            found = row & sure
            return found, found if maybe is sure else row & maybe
        if isinstance(key, AddressBlock):
            return self._block_rows(key)
        verdicts = [self.matches(key, endpoint) for endpoint in self.endpoints]
        sure = self.row_of_slots(slot for slot, found in enumerate(verdicts) if found)
        if None not in verdicts:
            return sure, sure
        return sure, self.row_of_slots(slot for slot, found in enumerate(verdicts) if found is not False)

    def _pods_row(self, selector: LabelSelector) -> Bits:
        row = self._part("selectable")
        for one in selector.requirements:
            if one.operator in ("In", "NotIn"):
                part = self._part((one.key, one.values[0]))
                for value in one.values[1:]:
                    part = part | self._part((one.key, value))
            else:
                part = self._part(("key", one.key))
            row = row & part if one.operator in ("In", "Exists") else row & ~part
        return row

    def _part(self, part: Any) -> Bits:
        row = self._part_rows.get(part)
        if row is None:
            if part == "selectable":
                slots = self._selectable
            elif part[0] == "namespace":
                slots = self._by_namespace.get(part[1], [])
            elif part[0] == "key":
                slots = self._by_key.get(part[1], [])
            else:
                slots = self._by_label.get(part, [])
            row = self._part_rows[part] = self.row_of_slots(slots)
        return row

    def _namespaces_row(self, selector: LabelSelector) -> tuple[Bits, Bits]:
        if not selector.requirements:
            row = self._part("selectable")
            return row, row
        rows = self._namespace_rows.get(selector)
        if rows is None:
            sure: list[int] = []
            unsure: list[int] = []
            for namespace, slots in self._by_namespace.items():
                found = self.namespace_matches(selector, namespace)
                if found is not False:
                    (unsure if found is None else sure).extend(slots)
            row = self.row_of_slots(sure)
            rows = self._namespace_rows[selector] = (row, self.row_of_slots(sure + unsure) if unsure else row)
        return rows

    def _block_rows(self, block: AddressBlock) -> tuple[Bits, Bits]:
        if self._sorted is None:
            self._sorted = {}
            for version in (4, 6):
                pairs = sorted(
                    (int(one.address), slot)
                    for slot, one in enumerate(self.endpoints)
                    if one.address is not None and one.address.version == version
                )
                self._sorted[version] = ([a for a, _ in pairs], [slot for _, slot in pairs])
        addresses, slots = self._sorted[block.network.version]

        def within(network: Any) -> list[int]:
            first = bisect_left(addresses, int(network.network_address))
            return slots[first : bisect_right(addresses, int(network.broadcast_address))]

        row = np.zeros(8 * self._bytes, np.uint8)
        row[within(block.network)] = 1
        for network in block.excepted:
            row[within(network)] = 0
        sure = np.packbits(row, bitorder="little")
        unknown = [slot for slot, one in enumerate(self.endpoints) if one.address is None]
        return sure, sure | self.row_of_slots(unknown) if unknown else sure

    def _candidates(self, endpoint: Endpoint) -> set[int]:
        # The sets that a new endpoint may be in, by a condition that each of them has.
        found = set(self._pivots["any"])
        if endpoint.pod is not None and endpoint.selectable:
            namespace = endpoint.pod.namespace
            found.update(self._pivots.get(namespace, ()))
            for label in endpoint.pod.labels.items():
                found.update(self._pivots.get(label, ()))
                found.update(self._pivots.get((namespace, *label), ()))
            found.update(self._pivots.get("pods", ()))
        return found


def _pivots(key: Selectable) -> list[Any]:
    if isinstance(key, NamedPort):
        return ["pods"]
    if not isinstance(key, PodPeer):
        return ["any"]
    required = [one for one in key.pods.requirements if one.operator == "In"]
    labels = [(required[0].key, value) for value in required[0].values] if required else []
    if key.namespace is not None:
        return [(key.namespace, *label) for label in labels] or [key.namespace]
    return list(labels) or ["pods"]


def _set(row: Bits, slot: int) -> None:
    row[slot >> 3] |= 1 << (slot & 7)


def _get(row: Bits, slot: int) -> bool:
    return bool(row[slot >> 3] >> (slot & 7) & 1)
