"""`ztprobe trace --attach --runtime kubernetes` on a real node: a deployment of others, behind a Service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import left_behind
from tests.cluster.foreign_federation import CLIENT, CLINIC, COMPUTE_S, SERVER, SERVICE_PORT, Clinic, clinic
from tests.cluster.real_node import RealNode, run_directory, wait_for
from tests.kernel.kubelet import await_line
from tests.schemas import problems
from ztprobe.rundir.store import load_run

TRACE = ("trace", "--attach", "--runtime", "kubernetes", "-n", CLINIC, "--server", SERVER)


@pytest.fixture(scope="module")
def federation(node: RealNode) -> Iterator[Clinic]:
    with clinic(node) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_left(node: RealNode, federation: Clinic) -> Iterator[None]:
    pinned, objects = left_behind.pinned(node), left_behind.objects(node)
    assert left_behind.on_devices(node) == set()
    yield
    assert left_behind.on_devices(node) == set()
    assert left_behind.processes(node) == set()
    assert left_behind.pinned(node) == pinned
    assert {one for one in left_behind.objects(node) ^ objects if not one.startswith("pods ")} == set()


def by_name(out: Path) -> dict[str, dict[str, Any]]:
    found: list[dict[str, Any]] = run_directory(out)["attachment"]["participants"]
    return {one["name"]: one for one in found}


def answered(one: dict[str, Any]) -> set[str]:
    """Clients whose update was seen to come in a round."""
    return {client["client"] for client in one["clients"] if client["arrival_s"] is not None}


def closes(report: dict[str, Any]) -> None:
    """Components and residual are the round."""
    assert problems("report", report) == []
    for one in report["rounds"]:
        parts_s = sum(one["components"].values()) + one["residual_s"]
        assert parts_s == pytest.approx(one["duration_s"], abs=1e-6)


@pytest.mark.parametrize("named", [("--client", CLIENT), ()], ids=["named", "by connection"])
def test_a_deployment_of_others_behind_a_service(
    federation: Clinic, tmp_path: Path, named: tuple[str, ...]
) -> None:
    out, clients = tmp_path / "run", federation.names()
    server = str(federation.server()["metadata"]["name"])
    done = federation.node.ztprobe(*TRACE, *named, "--rounds", "6", "--out", str(out), "--json")
    report, run = json.loads(done.stdout), load_run(out)
    found = by_name(out)
    assert {name: one["role"] for name, one in found.items()} == {
        server: "server",
        **dict.fromkeys(clients, "client"),
    }
    assert all(one["processes"] and "address" not in one for one in found.values())
    assert run.meta["attachment"]["rounds_from"]["source"] == "events"
    # Clients speak to the Service, the server hears of pods: on the way an address was translated.
    remotes = run.events["connections"].query("pod in @clients")[["remote", "remote_port"]]
    assert (federation.address, SERVICE_PORT) in set(remotes.itertuples(index=False, name=None))
    assert not any(run.meta["loss"].values()), run.meta["loss"]
    assert len(report["rounds"]) >= 5
    closes(report)
    for one in report["rounds"]:
        assert answered(one) == clients
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
        assert one["components"]["compute"] >= COMPUTE_S
        assert one["components"]["transmission"] > 0


def test_a_client_that_is_deleted_and_replaced_meanwhile(federation: Clinic, tmp_path: Path) -> None:
    out, before = tmp_path / "run", federation.names()
    begun = federation.node.begin(*TRACE, "--client", CLIENT, "--rounds", "40", "--out", str(out))
    said = await_line(begun, "round  3 of 40", 120)
    gone = min(before)
    federation.delete(gone)
    wait_for("another one is there", lambda: len(federation.names() - before) == 1, 90)
    (new,) = federation.names() - before
    assert begun.stderr is not None
    said += begun.stderr.read()
    assert begun.wait(120) == 0, said
    assert f"{new} has come" in said
    found = by_name(out)
    (stayed,) = before - {gone}
    assert {name for name, one in found.items() if one["role"] == "client"} == {gone, stayed, new}
    assert found[gone]["ended_ns"] > 0
    assert found[stayed]["ended_ns"] == found[new]["ended_ns"] == 0
    assert found[new]["first_seen_ns"] > found[stayed]["first_seen_ns"]
    assert found[new]["pod"] == new
    report = json.loads((out / "report.json").read_text())
    closes(report)
    told = [answered(one) for one in report["rounds"]]
    assert told[0] == before
    first = next(number for number, names in enumerate(told) if new in names)
    # The server waited for it; from then on it is told like any other.
    assert report["rounds"][first]["critical_client"] == new
    assert report["rounds"][first]["components"]["compute"] >= COMPUTE_S
    assert told[first:] == [{stayed, new}] * len(told[first:])
    assert len(told[first:]) >= 10
    for one in report["rounds"][first + 1 :]:
        assert abs(one["residual_s"]) <= 0.05 * one["duration_s"]
    named = {one["name"]: one for one in report["attachment"]["participants"]}
    assert named[gone]["left_s"] > 0
    assert named[new]["came_s"] > 0
    assert gone in {pod for one in report["troubles"] for pod in one["pods"]}
