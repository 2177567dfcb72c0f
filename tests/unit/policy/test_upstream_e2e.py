"""Kubernetes' own NetworkPolicy cases as data: explained and in bulk, over IPv4 and IPv6."""

from __future__ import annotations

import copy
import itertools
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ztprobe.policy.bulk import CODES, Verdicts
from ztprobe.policy.explanation import Explainer
from ztprobe.policy.manifests import Document
from ztprobe.policy.model import PROTOCOLS
from ztprobe.policy.objects import read_objects

CASES = yaml.safe_load((Path(__file__).parents[2] / "data/policy/network_policy.yaml").read_text())["cases"]
CASES_UPSTREAM = 48  # f.It in network_policy.go at the commit that the data names
TABLES_UPSTREAM = 65  # calls of ValidateOrFail there


class Scene:
    """Three namespaces, the pods of a case, and policies that come and change."""

    def __init__(self, pods: list[str], six: bool) -> None:
        base = "fd00::1:" if six else "10.1.0."
        self.six = six
        self.addresses = {name: f"{base}{n + 1}" for n, name in enumerate(pods)}
        self.labels: dict[str, dict[str, str]] = {name: {"pod": name[2:]} for name in pods}
        self.namespaces: dict[str, dict[str, str]] = {name: {} for name in "xyz"}
        self.policies: dict[str, dict[str, Any]] = {}

    def apply(self, step: dict[str, Any]) -> None:
        if "policy" in step:
            name, spec = step["policy"]
            text = json.dumps(spec)
            for pod, address in self.addresses.items():
                text = text.replace(f"{{{pod}}}", address)
            self.policies[name] = json.loads(text.replace("/32", "/128") if self.six else text)
        elif "label" in step:
            name, labels = step["label"]
            (self.labels if "/" in name else self.namespaces)[name] |= labels
        else:
            self.policies.clear()

    def documents(self) -> list[dict[str, Any]]:
        ports = [
            {"name": f"serve-{n}-{p.lower()}", "containerPort": n, "protocol": p}
            for n in (80, 81)
            for p in PROTOCOLS
        ]

        def document(version: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
            namespace, _, own = name.rpartition("/")
            labels = more.pop("labels", {})
            metadata = {"name": own, "labels": labels} | ({"namespace": namespace} if namespace else {})
            return {"apiVersion": version, "kind": kind, "metadata": metadata} | more

        return [
            *(document("v1", "Namespace", name, labels=labels) for name, labels in self.namespaces.items()),
            *(
                document(
                    "v1",
                    "Pod",
                    name,
                    labels=labels,
                    spec={"containers": [{"name": "c", "ports": ports}]},
                    status={"podIP": self.addresses[name]},
                )
                for name, labels in self.labels.items()
            ),
            *(
                document("networking.k8s.io/v1", "NetworkPolicy", name, spec=spec)
                for name, spec in self.policies.items()
            ),
        ]


def expected(ask: dict[str, Any], source: str, target: str) -> bool:
    found = True
    for key in ("shut", "open"):
        for pattern in ask.get(key, ()):
            one, _, other = pattern.partition(" -> ")
            if fnmatchcase(source, one) and fnmatchcase(target, other):
                found = key == "open"
    return found


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["title"])
def test_truth_table(case: dict[str, Any], six: bool) -> None:
    scene = Scene(case["pods"], six)
    for step in case["steps"]:
        if "ask" not in step:
            scene.apply(step)
            continue
        ask = step["ask"]
        port, protocol = ask["port"].split("/")
        objects = read_objects(Document(copy.deepcopy(one), "upstream") for one in scene.documents())
        pairs = [(s, t) for s, t in itertools.product(case["pods"], repeat=2) if s != t]
        explainer, verdicts = Explainer(objects), Verdicts(objects)
        slots = [[verdicts.compiled.slots[name][0] for name in names] for names in zip(*pairs, strict=True)]
        ones = np.ones(len(pairs), int)
        codes = verdicts.verdicts(*map(np.array, slots), ones * PROTOCOLS.index(protocol), ones * int(port))
        for (source, target), code in zip(pairs, codes, strict=True):
            found = explainer.explain(source, target, protocol, int(port))
            assert (found.verdict != "denied") == expected(ask, source, target), (source, target, found)
            assert CODES[code] == found.verdict


def test_every_case_of_upstream_is_here() -> None:
    assert len({case["title"] for case in CASES}) == len(CASES) == CASES_UPSTREAM
    assert sum("ask" in step for case in CASES for step in case["steps"]) == TABLES_UPSTREAM
