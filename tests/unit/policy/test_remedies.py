"""The missing rules: put beside what denied a connection, it is denied no more."""

from __future__ import annotations

import copy
from random import Random

from tests.unit.policy.brute_force import Cluster
from tests.unit.policy.random_objects import ends_of, random_cluster
from tests.unit.policy.test_brute_force import connections, objects_of, slot_of
from ztprobe.policy.explanation import Explainer
from ztprobe.policy.remedies import lasting_labels, missing_rules


def test_what_is_said_to_be_missing_helps() -> None:
    helped = 0
    for seed in range(150):
        random = Random(seed)
        documents = random_cluster(random)
        explainer = Explainer(objects_of(documents))
        for source, target, protocol, port in connections(random, ends_of(documents), 20):
            slots = (slot_of(explainer.compiled, source), slot_of(explainer.compiled, target))
            found = explainer.explain_slots(*slots, protocol, port)
            rules = missing_rules(explainer.objects, found)
            denying = [side for side in found.sides if side.verdict == "denied"]
            assert bool(rules) <= bool(denying)
            if not denying or len(rules) < len(denying):
                continue
            cluster = Cluster(copy.deepcopy([*documents, *rules]))
            # Two rules of one priority: which goes first is nobody's to know.
            assert cluster.verdict(source, target, protocol, port) in ("allowed", "undecidable"), (
                seed,
                rules,
            )
            objects_of([*documents, *rules])  # every field is one that is understood
            helped += 1
    assert helped > 200


def test_labels_that_a_controller_gives_anew_are_left_out() -> None:
    labels = {"app": "web", "pod-template-hash": "5d9c", "batch.kubernetes.io/job-name": "j"}
    assert lasting_labels(labels) == {"app": "web"}
