"""The manifests with edge aggregators: who is where, under which name, and who may talk to whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fl.config import ClientConfig, EdgeConfig
from tests.unit.test_manifests import options
from ztprobe import paths, policy
from ztprobe.errors import UsageError
from ztprobe.runtime.local import placement
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.runtime import LocalRuntime
from ztprobe.runtime.local.workload import Workload, plan


def planned(level: int, edges: int = 2) -> Workload:
    overlay = paths.MANIFESTS_DIR / "overlays" / f"sec{level}-edges"
    return plan(
        render(overlay), options(level, clients=5, dataset="digits", data_dir=None, fl={"edges": edges})
    )


@pytest.mark.parametrize("level", [0, 1])
def test_edges_are_pods_with_names_of_their_own(level: int) -> None:
    workload = planned(level, edges=3)
    names = [pod.name for pod in workload.pods]
    assert names == ["fl-server", *(f"fl-edge-{i}" for i in range(3)), *(f"fl-client-{i}" for i in range(5))]
    edges = [EdgeConfig.from_env(pod.application.env) for pod in workload.edges]
    assert [(edge.edge_index, edge.own_clients) for edge in edges] == [(0, 2), (1, 2), (2, 1)]
    assert {edge.server for edge in edges} == {f"{workload.service.domain_name}:50051"}
    for pod in workload.clients:
        host, _, port = ClientConfig.from_env(pod.application.env).peer.rpartition(":")
        assert workload.edge_names[host] == f"fl-edge-{int(pod.name[-1]) * 3 // 5}"
        assert port == "50051"
    assert json.loads(workload.server.application.env["FL_OPTIONS"]) == {"edges": 3}


def test_policies_lead_through_the_edges() -> None:
    workload = planned(1)
    pods = placement.policy_pods(workload, placement.place(workload))
    rules = policy.compile_policies(workload.policies, pods)

    def allowed(source: str, target: str) -> bool:
        return rules.allows(source, target, "TCP", 50051).allowed

    ways = [("fl-client-0", "fl-edge-0"), ("fl-client-4", "fl-edge-1"), ("fl-edge-1", "fl-server")]
    assert all(allowed(*way) for way in ways)
    shut = [("fl-client-0", "fl-server"), ("fl-edge-0", "fl-edge-1"), ("fl-server", "fl-edge-0")]
    assert not any(allowed(*way) for way in shut)


def test_without_edges_nothing_changes() -> None:
    workload = plan(render(paths.MANIFESTS_DIR / "overlays" / "sec0"), options(0))
    assert (workload.edges, workload.edge_names) == ((), {})


def test_edges_have_no_sidecars_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--fl-edges: edges have no sidecars yet, so not under sec3"):
        LocalRuntime(options(3, fl={"edges": 2}), run_id="x", log_dir=tmp_path, offloads=True)
