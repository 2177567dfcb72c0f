"""Verdicts against a second evaluator on random clusters: explained, in bulk, and after changes."""

from __future__ import annotations

import copy
import ipaddress
import os
from random import Random
from typing import Any

import numpy as np
import pytest

from tests.unit.policy.brute_force import Cluster, End
from tests.unit.policy.random_objects import (
    CONNECTION_PORTS,
    PROTOCOLS,
    ends_of,
    random_cluster,
    random_pod,
    random_policy,
)
from ztprobe.policy.bulk import CODES, Verdicts
from ztprobe.policy.explanation import Explainer
from ztprobe.policy.manifests import Document
from ztprobe.policy.model import Objects
from ztprobe.policy.objects import read_objects

SETS = int(os.environ.get("ZTPROBE_POLICY_SETS", "600"))  # ZTPROBE_POLICY_SETS=10000 for all
SEEDS_EACH = 50


def objects_of(documents: list[dict[str, Any]]) -> Objects:
    return read_objects(Document(copy.deepcopy(one), "random") for one in documents)


def slot_of(compiled: Any, end: End) -> int:
    pod, address = end
    if pod is None:
        return compiled.slot_of_address(ipaddress.ip_address(address))
    slots = compiled.slots[f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"]
    return next(s for s in slots if str(compiled.selections.endpoints[s].address) == address)


def connections(random: Random, ends: list[End], count: int) -> list[tuple[End, End, str, int]]:
    found = []
    while len(found) < count:
        source, target = random.choice(ends), random.choice(ends)
        if ("." in source[1]) == ("." in target[1]) and (source[0] is not None or target[0] is not None):
            port = random.choice((*CONNECTION_PORTS, 9999))
            found.append((source, target, random.choice(PROTOCOLS), port))
    return found


def bulk(verdicts: Verdicts, asked: list[tuple[End, End, str, int]]) -> list[str]:
    compiled = verdicts.compiled
    rows = [
        (slot_of(compiled, s), slot_of(compiled, t), PROTOCOLS.index(protocol), port)
        for s, t, protocol, port in asked
    ]
    return [CODES[code] for code in verdicts.verdicts(*map(np.array, zip(*rows, strict=True)))]


@pytest.mark.parametrize("first", range(0, SETS, SEEDS_EACH))
def test_verdicts_agree(first: int) -> None:
    for seed in range(first, min(first + SEEDS_EACH, SETS)):
        random = Random(seed)
        documents = random_cluster(random)
        asked = connections(random, ends_of(documents), 30)
        cluster, objects = Cluster(documents), objects_of(documents)
        expected = [cluster.verdict(*one) for one in asked]
        explainer = Explainer(objects)
        explained = [
            explainer.explain_slots(
                slot_of(explainer.compiled, s), slot_of(explainer.compiled, t), protocol, port
            ).verdict
            for s, t, protocol, port in asked
        ]
        assert explained == expected, f"seed {seed}"
        assert bulk(Verdicts(objects), asked) == expected, f"seed {seed}"


@pytest.mark.parametrize("seed", range(40))
def test_changes_are_taken_in(seed: int) -> None:
    random = Random(seed)
    documents = random_cluster(random)
    verdicts = Verdicts(objects_of(documents))
    for step in range(12):
        change = (
            random_policy(random, f"p-{step % 4}")
            if random.random() < 0.6
            else random_pod(random, 7 + step % 3)
        )
        if random.random() < 0.5:  # one that is there, changed
            there = [one for one in documents if one["kind"] == change["kind"]]
            if there:
                change["metadata"] = copy.deepcopy(random.choice(there)["metadata"])
        identity = (change["kind"], change["metadata"].get("namespace"), change["metadata"]["name"])
        documents = [
            one
            for one in documents
            if (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) != identity
        ]
        (pod, *_), (policy, *_) = ((*found, None) for found in _one(change))
        if random.random() < 0.15 and policy is not None:
            verdicts.remove_policy(policy.id)
        else:
            documents.append(change)
            if pod is not None:
                verdicts.put_pod(pod)
            else:
                verdicts.put_policy(policy)
        asked = connections(random, ends_of(documents), 25)
        expected = [Cluster(documents).verdict(*one) for one in asked]
        assert bulk(verdicts, asked) == expected, f"step {step}"
    assert not verdicts.compiled.worn
    assert bulk(Verdicts(verdicts.compiled.objects), asked) == expected


def _one(document: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    objects = objects_of([document])
    return objects.pods, objects.policies


@pytest.mark.parametrize("first", range(0, 200, SEEDS_EACH))
def test_what_is_not_known_never_changes_a_verdict(first: int) -> None:
    undecidable = 0
    for seed in range(first, first + SEEDS_EACH):
        random = Random(10_000 + seed)
        documents = random_cluster(random)
        asked = connections(random, ends_of(documents), 30)
        expected = [Cluster(documents).verdict(*one) for one in asked]
        hidden = _hide(random, documents)
        objects = objects_of(hidden)
        explainer, verdicts = Explainer(objects), Verdicts(objects)
        for (source, target, protocol, port), truth in zip(asked, expected, strict=True):
            slots = [_slots(explainer.compiled, end) for end in (source, target)]
            found = {
                explainer.explain_slots(s, t, protocol, port).verdict for s in slots[0] for t in slots[1]
            }
            assert len(found) == 1
            (verdict,) = found
            undecidable += verdict == "undecidable"
            passing = {"allowed", "not applicable"}
            assert verdict == "undecidable" or verdict == truth or {verdict, truth} <= passing, f"seed {seed}"
            slots = [_slots(verdicts.compiled, end) for end in (source, target)]
            code = verdicts.verdicts(
                np.array(slots[0][:1]),
                np.array(slots[1][:1]),
                np.array([PROTOCOLS.index(protocol)]),
                np.array([port]),
            )
            assert CODES[code[0]] == verdict, f"seed {seed}"
    assert undecidable > 5


def _hide(random: Random, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = copy.deepcopy(documents)
    hidden = random.choice(("a", "b", "c"))
    kept = []
    for one in found:
        if one["kind"] == "Namespace" and one["metadata"]["name"] == hidden:
            continue
        if one["kind"] == "Node" and random.random() < 0.3:
            kept = [k for k in kept if k["kind"] != "Node"]
            found = [k for k in found if k["kind"] != "Node"]
            continue
        if one["kind"] == "Pod" and random.random() < 0.3:
            one["status"].pop("podIPs")
        if one["kind"] == "Pod" and random.random() < 0.2:
            one["spec"].pop("nodeName")
        kept.append(one)
    nodes = [one for one in kept if one["kind"] == "Node"]
    return kept if len(nodes) == 2 else [one for one in kept if one["kind"] != "Node"]


def _slots(compiled: Any, end: End) -> list[int]:
    pod, address = end
    if pod is None:
        return [compiled.slot_of_address(ipaddress.ip_address(address))]
    slots = compiled.slots[f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"]
    addresses = [compiled.selections.endpoints[s].address for s in slots]
    return [s for s, known in zip(slots, addresses, strict=True) if known is None or str(known) == address]
