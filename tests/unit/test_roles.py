"""Who serves whom, as run.json tells it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from analysis.ledger.roles import roles_of

META: dict[str, Any] = {
    "pods": [{"name": name} for name in ("hub", "a", "b", "tail", "kube-dns")],
    "topology": {
        "rounds_of": "tail",
        "pods": ["tail", "hub", "a", "b"],
        "endpoints": [
            {"pod": "tail", "container": "app", "address": "127.0.0.1", "port": 1, "reachable": False},
            {"pod": "tail", "container": "proxy", "address": "0.0.0.0", "port": 7000, "reachable": True},
            {"pod": "tail", "container": "proxy", "address": "0.0.0.0", "port": 7001, "reachable": True},
            {"pod": "hub", "container": "app", "address": "::", "port": 9000, "reachable": True},
        ],
        "connections": [],
        "serves": {"tail": ["a"], "hub": ["b"]},
        "behind_sidecar": {"tail": "proxy", "a": ""},
    },
}


def test_a_pod_is_a_client_if_it_serves_nobody_whether_it_was_connected_or_not() -> None:
    roles = roles_of(META)
    assert (roles.server, roles.ports, roles.clients) == ("tail", {7000, 7001}, ("a", "b"))
    assert roles.behind_sidecar == {"tail", "a"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda meta: meta.pop("topology"), "does not say who serves whom"),
        (lambda meta: meta["topology"].pop("serves"), "'serves' is not as ztprobe writes it"),
        (lambda meta: meta["topology"].update(endpoints=7), "not as ztprobe writes it"),
        (lambda meta: meta["topology"].update(rounds_of="nobody"), "nobody is none of the pods"),
        (lambda meta: meta["topology"].update(endpoints=[]), "tail was reached at 0 ports and serves 2"),
        (lambda meta: meta["topology"].update(pods=["tail"]), "2 ports and serves 0 pods"),
    ],
)
def test_what_does_not_fit_together_is_said(damage: Callable[[dict[str, Any]], Any], said: str) -> None:
    meta = copy.deepcopy(META)
    damage(meta)
    with pytest.raises(ValueError, match=said):
        roles_of(meta)


def test_whom_an_edge_serves_is_not_the_servers_own_client() -> None:
    meta = copy.deepcopy(META)
    meta["topology"]["serves"] = {"tail": ["hub"], "hub": ["a", "b"]}
    assert roles_of(meta).clients == ("hub",)
