"""The manifests with edge aggregators: who is where, under which name, and who may talk to whom."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from fl.config import ClientConfig, EdgeConfig
from tests.unit.test_manifests import options
from ztprobe import paths, policy
from ztprobe.errors import UsageError
from ztprobe.runtime.local import placement
from ztprobe.runtime.local.certificates import spiffe_id
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.runtime import LocalRuntime
from ztprobe.runtime.local.workload import PodPlan, Workload, plan

LOCAL = "127.0.0.1:15001"


def planned(level: int, edges: int = 2) -> Workload:
    overlay = paths.MANIFESTS_DIR / "overlays" / f"sec{level}-edges"
    return plan(
        render(overlay), options(level, clients=5, dataset="digits", data_dir=None, fl={"edges": edges})
    )


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_edges_are_pods_with_names_of_their_own(level: int) -> None:
    workload = planned(level, edges=3)
    names = [pod.name for pod in workload.pods]
    assert names == ["fl-server", *(f"fl-edge-{i}" for i in range(3)), *(f"fl-client-{i}" for i in range(5))]
    edges = [EdgeConfig.from_env(pod.application.env) for pod in workload.edges]
    assert [(edge.edge_index, edge.own_clients) for edge in edges] == [(0, 2), (1, 2), (2, 1)]
    secure = level >= 2
    assert {edge.server for edge in edges} == {LOCAL if secure else f"{workload.service.domain_name}:50051"}
    for pod in workload.clients:
        peer = ClientConfig.from_env(pod.application.env).peer
        host, _, port = (own_edge(pod) if secure else peer).rpartition(":")
        assert workload.edge_names[host] == f"fl-edge-{int(pod.name[-1]) * 3 // 5}"
        assert port == "50051"
        assert not secure or peer == LOCAL
    assert json.loads(workload.server.application.env["FL_OPTIONS"]) == {"edges": 3}


def own_edge(pod: PodPlan) -> str:
    """Whom a client's sidecar connects to: its configuration, with the number that its command works out."""
    (sidecar,) = (one for one in pod.containers if one.sidecar)
    script = sidecar.command[2].replace("exec haproxy", 'echo "$FL_EDGE" #')
    number = subprocess.run(["sh", "-c", script], env=dict(sidecar.env), capture_output=True, text=True)
    config = sidecar.mounts[0].files["haproxy.cfg"].replace("${FL_EDGE}", number.stdout.strip())
    (server,) = re.findall(r'server fl-edge "(.*?)" .* verifyhost "(.*?)"', config)
    assert server[0] == f"{server[1]}:50051"
    return str(server[0])


def test_each_account_has_a_certificate_for_its_own_names() -> None:
    workload = planned(3)
    assert workload.served_names("fl-client") == []
    assert workload.served_names("fl-server") == [workload.service.domain_name]
    assert workload.served_names("fl-edge") == list(workload.edge_names)
    secrets = {pod.service_account: pod.secret for pod in workload.pods}
    assert secrets == {"fl-server": "fl-server-tls", "fl-edge": "fl-edge-tls", "fl-client": "fl-client-tls"}


@pytest.mark.parametrize(("pod", "peer"), [("fl-server", "fl-edge"), ("fl-edge-0", "fl-client")])
def test_a_sidecar_lets_in_whoever_is_next_and_nobody_else(pod: str, peer: str) -> None:
    (plan_,) = (one for one in planned(2).pods if one.name == pod)
    config = plan_.containers[0].mounts[0].files["haproxy.cfg"]
    name = spiffe_id("fl", peer).encode()
    assert re.findall(r"-m sub (\w+)", config) == [(bytes([0x86, len(name)]) + name).hex().upper()]


@pytest.mark.parametrize("level", [1, 3])
def test_policies_lead_through_the_edges(level: int) -> None:
    workload = planned(level)
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


def test_a_level_without_manifests_for_edges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--fl-edges: .*sec3-edges is missing"):
        LocalRuntime(
            options(3, fl={"edges": 2}), run_id="x", log_dir=tmp_path, offloads=True, manifests_dir=tmp_path
        )
