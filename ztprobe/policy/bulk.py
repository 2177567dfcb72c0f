"""Verdicts by the million: rows of allowed peers per class of endpoints and range of ports.

A row is found when it is first asked for, by walking the tiers once for all peers at a time
(sets are bits), and kept; classes and ports under which the same rules apply share one. What
changes (`Verdicts.put_pod`, `put_policy`) drops the rows that it is about and no others. A pod that
changes has a new slot, beyond the end of the rows that were found before. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ztprobe.policy.compiled import Compiled
from ztprobe.policy.compiled_rules import CompiledPolicy, CompiledRule, PolicyGroup
from ztprobe.policy.model import DIRECTIONS, PROTOCOLS, ClusterPod, IPAddress, Objects, Policy
from ztprobe.policy.selections import Bits

__all__ = ("ALLOWED", "CODES", "DENIED", "NOT_APPLICABLE", "UNDECIDABLE", "Verdicts")

CODES = ("not applicable", "allowed", "denied", "undecidable")
NOT_APPLICABLE, ALLOWED, DENIED, UNDECIDABLE = range(4)
_MISSING = -1

Numbers = npt.NDArray[np.integer[Any]]


class Verdicts:
    """Objects, ready for many questions."""

    def __init__(self, objects: Objects) -> None:
        self.compiled = Compiled(objects)
        self.compiled.on_change = self._read_again
        self._ranges = [np.zeros(65536, np.int32) for _ in PROTOCOLS]  # port -> range, over all protocols
        self._count = 0
        self._first_ports: list[tuple[int, int]] = []  # range -> (protocol, a port of it)
        for protocol in range(len(PROTOCOLS)):
            self._new_range(protocol, 0)
        self._table: dict[str, npt.NDArray[np.int32]] = {}  # direction -> class x range -> row
        self._passing: Bits = np.zeros((256, self.compiled.selections.row_bytes), np.uint8)
        self._dropping: Bits = np.zeros_like(self._passing)  # where not known, a bit is set in both
        self._known_slots = np.zeros(256, np.int64)  # how many endpoints there were when a row was found
        self._rows: dict[_Reading, int] = {}
        # serial -> direction and range -> what the policy's rules say of it, where no subject counts
        self._terms: dict[int, dict[tuple[str, int], tuple[int, ...]]] = {}
        self._all_terms: list[_Term] = []
        self._term_numbers: dict[_Term, int] = {}
        for policy in self.compiled.policies.values():
            self._add_boundaries(policy)
        self._table = {d: self._no_rows(d) for d in DIRECTIONS}

    # -- questions

    def verdicts(self, sources: Numbers, targets: Numbers, protocols: Numbers, ports: Numbers) -> Numbers:
        """The verdicts on new connections, as indices of `CODES`.

        :param sources: slots, as `targets`; of one address family each pair.
        :param protocols: indices of `PROTOCOLS`.
        :param ports: the targets' ports.
        """
        self._fit()
        sources, targets = np.asarray(sources), np.asarray(targets)
        where = np.empty(len(sources), np.int32)
        for number, ranges in enumerate(self._ranges):
            chosen = np.asarray(protocols) == number
            where[chosen] = ranges[np.asarray(ports)[chosen]]
        passes = np.ones(len(sources), np.uint8)
        drops = np.zeros(len(sources), np.uint8)
        selected = np.zeros(len(sources), bool)
        for direction, subjects, peers in (
            ("egress", sources, targets),
            ("ingress", targets, sources),
        ):
            classes = self.compiled.classes(direction)[subjects]
            rows = self._rows_of(direction, classes, where, peers)
            byte, bit = peers >> 3, (peers & 7).astype(np.uint8)
            passes &= self._passing[rows, byte] >> bit
            drops |= self._dropping[rows, byte] >> bit
            selected |= classes > 0
        passes &= 1
        drops &= 1
        codes = np.where(selected, ALLOWED, NOT_APPLICABLE).astype(np.uint8)
        codes[drops == 1] = DENIED
        codes[(drops & passes) == 1] = UNDECIDABLE
        # A pod reaches itself, whatever policies say.
        own = self.compiled.owners
        codes[(own[sources] == own[targets]) & selected] = ALLOWED
        return codes

    # -- changes

    def put_pod(self, pod: ClusterPod) -> None:
        """Take in a new pod, or one that changed."""
        self.compiled.put_pod(pod)

    def put_policy(self, policy: Policy) -> None:
        """Take in a new policy, or one that changed."""
        self._terms.pop(self.compiled.serial_of(policy.id), None)
        self.compiled.put_policy(policy)
        self._add_boundaries(self.compiled.policies[self.compiled.serial_of(policy.id)])

    def remove_policy(self, policy: str) -> None:
        """Forget a policy (by its id), if it is there."""
        self._terms.pop(self.compiled.serial_of(policy), None)
        self.compiled.remove_policy(policy)

    def _fit(self) -> None:
        # Room for what was added to `compiled`: classes, ranges, endpoints.
        for direction, table in self._table.items():
            if table.shape[0] < self.compiled.class_count(direction) or table.shape[1] < self._count:
                self._table[direction] = self._no_rows(direction)
                self._table[direction][: table.shape[0], : table.shape[1]] = table
        wide = self.compiled.selections.row_bytes - self._passing.shape[1]
        if wide:
            more = np.zeros((len(self._passing), wide), np.uint8)
            self._passing = np.concatenate([self._passing, more], axis=1)
            self._dropping = np.concatenate([self._dropping, more], axis=1)

    def _no_rows(self, direction: str) -> npt.NDArray[np.int32]:
        # With room, so that few changes need a larger one.
        classes = self.compiled.class_count(direction)
        return np.full((classes + classes // 4 + 64, self._count + 16), _MISSING, np.int32)

    def _read_again(self, policy: CompiledPolicy) -> None:
        self._add_boundaries(policy)
        self._terms.pop(policy.serial, None)
        for direction in policy.rules:
            for number in self.compiled.classes_with(policy.serial, direction):
                if number < len(self._table[direction]):
                    self._table[direction][number] = _MISSING

    # -- ranges of ports

    def _add_boundaries(self, policy: CompiledPolicy) -> None:
        for rules in policy.rules.values():
            for rule in rules:
                for port in rule.ports or ():
                    protocol = PROTOCOLS.index(port.protocol)
                    self._split(protocol, port.first)
                    self._split(protocol, port.last + 1)

    def _split(self, protocol: int, port: int) -> None:
        ranges = self._ranges[protocol]
        if port > 65535 or port == 0 or ranges[port - 1] != ranges[port]:
            return
        old = int(ranges[port])
        new = self._new_range(protocol, port)
        end = port + int(np.argmax(np.append(ranges[port:], -2) != old))
        ranges[port:end] = new
        self._fit()
        for table in self._table.values():
            table[:, new] = table[:, old]

    def _new_range(self, protocol: int, port: int) -> int:
        number = self._count
        self._count += 1
        self._first_ports.append((protocol, port))
        if port == 0:
            self._ranges[protocol][:] = number
        return number

    # -- rows

    def _rows_of(self, direction: str, classes: Numbers, where: Numbers, peers: Numbers) -> Numbers:
        rows = self._table[direction][classes, where]
        stale = (rows == _MISSING) | (peers >= self._known_slots[rows])
        if stale.any():
            pairs = np.unique(classes[stale].astype(np.int64) << 32 | where[stale])
            for pair in pairs.tolist():
                number, span = pair >> 32, pair & 0xFFFFFFFF
                self._table[direction][number, span] = self._find_row(direction, number, span)
            rows = self._table[direction][classes, where]
        return rows

    def _find_row(self, direction: str, number: int, span: int) -> int:
        group = self.compiled.group(direction, number)
        reading = self._read(group, direction, span)
        slots = len(self.compiled.selections.endpoints)
        row = self._rows.get(reading)
        if row is None:
            row = self._rows[reading] = len(self._rows)
            if row == len(self._passing):
                self._passing = np.concatenate([self._passing, np.zeros_like(self._passing)])
                self._dropping = np.concatenate([self._dropping, np.zeros_like(self._dropping)])
                self._known_slots = np.concatenate([self._known_slots, np.zeros_like(self._known_slots)])
        if self._known_slots[row] < slots:
            self._passing[row], self._dropping[row] = _walk(self.compiled, reading, self._all_terms)
            self._known_slots[row] = slots
        return row

    def _read(self, group: PolicyGroup, direction: str, span: int) -> _Reading:
        # Called for every class and range that anybody asks about: terms are numbers here, not compared.
        ordered: dict[str, dict[int, list[tuple[bool, tuple[int, ...]]]]] = {"Admin": {}, "Baseline": {}}
        isolated = False
        allowing: list[int] = []
        policies, key = self.compiled.policies, (direction, span)
        for serial in group.serials:
            one = policies[serial]
            known = self._terms.get(serial)
            terms = None if known is None else known.get(key)
            if terms is None:
                terms = self._find_terms(one, group, direction, span)
            if one.policy.tier == "NetworkPolicy":
                isolated = True
                allowing += terms
            elif terms:
                alike = ordered[one.policy.tier].setdefault(one.policy.priority, [])
                alike.append((serial not in group.unsure, terms))
        admin, baseline = (tuple(map(tuple, ordered[tier].values())) for tier in ("Admin", "Baseline"))
        node = group.node if isolated and direction == "ingress" else (None, ())
        return _Reading(admin, isolated, frozenset(allowing), node, baseline)

    def _find_terms(
        self, one: CompiledPolicy, group: PolicyGroup, direction: str, span: int
    ) -> tuple[int, ...]:
        protocol, port = self._first_ports[span]
        found = (_term(r, group, direction, PROTOCOLS[protocol], port) for r in one.rules[direction])
        terms = tuple(self._number_of(term) for term in found if term is not None)
        if direction == "egress" or not one.names_ports:
            self._terms.setdefault(one.serial, {})[direction, span] = terms
        return terms

    def _number_of(self, term: _Term) -> int:
        number = self._term_numbers.get(term)
        if number is None:
            number = self._term_numbers[term] = len(self._all_terms)
            self._all_terms.append(term)
        return number


class _Term(NamedTuple):
    # A rule that is about the port at hand: equal terms match the same peers.
    action: str
    peers: tuple[int, ...] | None
    receivers: tuple[int, ...] | None  # only those peers that have the port under its name
    sure: bool  # whether it is about the port for certain


_Priorities = tuple[tuple[tuple[bool, tuple[int, ...]], ...], ...]  # priority -> policy -> (sure, terms)


class _Reading(NamedTuple):
    # What a class reads about a port; equal readings are equal rows.
    admin: _Priorities
    isolated: bool
    allowing: frozenset[int]
    node: tuple[str | None, tuple[IPAddress, ...]]  # that NetworkPolicies let in
    baseline: _Priorities


def _term(rule: CompiledRule, group: PolicyGroup, direction: str, protocol: str, port: int) -> _Term | None:
    if rule.ports is None:
        return _Term(rule.action, rule.peers, None, True)
    about = [p for p in rule.ports if p.protocol == protocol and p.first <= port <= p.last]
    if any(p.receivers is None for p in about):
        return _Term(rule.action, rule.peers, None, True)
    if not about:
        return None
    if direction == "egress":
        return _Term(
            rule.action, rule.peers, tuple(p.receivers for p in about if p.receivers is not None), True
        )
    if group.named_ports is None:
        return _Term(rule.action, rule.peers, None, False)
    if any((protocol, p.name, port) in group.named_ports for p in about if not p.unsure):
        return _Term(rule.action, rule.peers, None, True)
    return None


def _walk(compiled: Compiled, reading: _Reading, terms: Sequence[_Term]) -> tuple[Bits, Bits]:
    selections = compiled.selections
    everyone = selections.everyone()
    nobody = np.zeros_like(everyone)
    passing, dropping = nobody, nobody

    def union(numbers: tuple[int, ...]) -> tuple[Bits, Bits]:
        sure, maybe = nobody, nobody
        for number in numbers:
            rows = selections.rows(number)
            sure, maybe = sure | rows[0], maybe | rows[1]
        return sure, maybe

    def rows_of(term: _Term) -> tuple[Bits, Bits]:
        sure, maybe = (everyone, everyone) if term.peers is None else union(term.peers)
        if term.receivers is not None:
            having = union(term.receivers)
            sure, maybe = sure & having[0], maybe & having[1]
        return sure if term.sure else nobody, maybe

    def tier(priorities: _Priorities, reach: Bits) -> Bits:
        # Those who go on to the next tier; of policies with one priority, any may go first.
        nonlocal passing, dropping
        onward = nobody
        for policies in priorities:
            taken = nobody
            for certain, numbers in policies:
                left = reach
                for term in (terms[number] for number in numbers):
                    sure, maybe = rows_of(term)
                    hit = left & maybe
                    if term.action == "Accept":
                        passing = passing | hit
                    elif term.action == "Deny":
                        dropping = dropping | hit
                    else:
                        onward = onward | hit
                    left = left & ~sure if certain else left
                taken = taken | (reach & ~left)
            reach = reach & ~taken
        return onward | reach

    reach = tier(reading.admin, everyone)
    if reading.isolated:
        sure, maybe = compiled.node_rows(reading.node) if reading.node != (None, ()) else (nobody, nobody)
        for number in reading.allowing:
            rows = rows_of(terms[number])
            sure, maybe = sure | rows[0], maybe | rows[1]
        return passing | (reach & maybe), dropping | (reach & ~sure)
    onward = tier(reading.baseline, reach)
    return passing | onward, dropping
