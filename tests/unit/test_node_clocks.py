"""Runs on several nodes: a recorded run, retold as if its clients had been on a node with another clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analysis.evidence.node_clocks import INSTANTS, NODE_CLOCKS, aligned
from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import COMPONENTS
from tests.unit.recorded_run import RECORDED
from ztprobe.rundir.store import Run, load_run

PATHS = {"delayed": RECORDED, "rate": RECORDED.parent / "net5-sec0"}


def two_nodes(run: Run, own_clock: Callable[[int], int], wall_error: Callable[[int], int]) -> Run:
    """The clients of a run on a node of their own.

    :param own_clock: what that node's monotonic clock shows at an instant of the server's node's.
    :param wall_error: how far its wall clock is ahead then, in nanoseconds.
    """
    clients = [pod["name"] for pod in run.meta["pods"] if pod["name"].startswith("fl-client")]
    others = [pod["name"] for pod in run.meta["pods"] if pod["name"] not in clients]
    begin, end = run.meta["clock_samples"][0], run.meta["clock_samples"][-1]
    offset_ns = begin["time_unix_ns"] - begin["time_monotonic_ns"]

    def sample(at_ns: int) -> dict[str, int]:
        return {
            "time_monotonic_ns": own_clock(at_ns),
            "time_unix_ns": at_ns + offset_ns + wall_error(at_ns),
        }

    step_ns = (end["time_monotonic_ns"] - begin["time_monotonic_ns"]) // 4
    instants = [begin["time_monotonic_ns"] + step_ns * k for k in range(5)]
    same = [{"time_monotonic_ns": ns, "time_unix_ns": ns + offset_ns} for ns in instants]
    events = {}
    for name, table in run.events.items():
        changed: dict[str, Any] = {}
        for column in [column for column in INSTANTS if column in table and "pod" in table]:
            times = table[column].tolist()
            mine = table["pod"].isin(clients).tolist()
            changed[column] = np.array(
                [own_clock(t) if own and t else t for t, own in zip(times, mine, strict=True)], dtype=np.int64
            )
        events[name] = table.assign(**changed)
        events[name].attrs = table.attrs
    return dataclasses.replace(
        run,
        events=events,
        clients=[
            event | {"time_monotonic_ns": own_clock(event["time_monotonic_ns"])} for event in run.clients
        ],
        meta=run.meta
        | {
            "clock_samples": same,
            "nodes": [
                {"name": "node-a", "pods": others, "clock_samples": same},
                {"name": "node-b", "pods": clients, "clock_samples": [sample(ns) for ns in instants]},
            ],
        },
    )


def shifted(ns: int) -> int:
    return ns + 3_000_000_000 + ns * 50 // 1_000_000


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "wall_error",
    [lambda _: 0, lambda _: 900_000, lambda _: -40_000_000],
    ids=["wall clocks agree", "0.9 ms ahead", "40 ms behind"],
)
def test_the_same_ledger_within_the_uncertainty_that_is_said(
    path: str, wall_error: Callable[[int], int]
) -> None:
    run = load_run(PATHS[path])
    truth = build_ledger(run)
    told = two_nodes(run, shifted, wall_error)
    found = build_ledger(told)
    (clock,) = aligned(told).meta[NODE_CLOCKS]
    assert clock["node"] == "node-b" and clock["packets"] >= 8
    assert abs(-clock["offset_ns"] - wall_error(0)) <= clock["uncertainty_ns"]
    # Not more room than a round trip of the path leaves: 2 x 80 ms less jitter, or next to nothing.
    assert clock["uncertainty_ns"] < (80_000_000 if path == "delayed" else 2_000_000)
    assert any("node-b" in note for note in found.notes)
    assert len(found.rounds) == len(truth.rounds)
    for one, true in zip(found.rounds, truth.rounds, strict=True):
        assert (one.round, one.duration_ns) == (true.round, true.duration_ns)
        assert sum(one.components_ns.values()) + one.residual_ns == one.duration_ns
        if one.critical_client == true.critical_client:
            for name in COMPONENTS:
                moved_ns = abs(one.components_ns[name] - true.components_ns[name])
                # Each of the two directions may be off by it.
                assert moved_ns <= 2 * clock["uncertainty_ns"], (name, moved_ns)


def test_clients_that_know_their_server_by_a_services_address() -> None:
    run = load_run(PATHS["rate"])
    connections = run.events["connections"]
    ours = connections["pod"].str.startswith("fl-client") & connections["remote_port"].isin([50051])
    assert ours.any()
    translated = connections.assign(
        remote=connections["remote"].where(~ours, "10.96.0.7"),
        remote_port=connections["remote_port"].where(~ours, 80),
    )
    translated.attrs = connections.attrs
    behind = dataclasses.replace(run, events=run.events | {"connections": translated})
    (true,) = aligned(two_nodes(run, shifted, lambda _: 900_000)).meta[NODE_CLOCKS]
    (found,) = aligned(two_nodes(behind, shifted, lambda _: 900_000)).meta[NODE_CLOCKS]
    assert found == true
    assert true["packets"] > 8


def test_a_wall_clock_that_drifts_is_a_line() -> None:
    run = load_run(PATHS["rate"])
    begin_ns = run.meta["clock_samples"][0]["time_monotonic_ns"]

    def drifting(ns: int) -> int:
        return (ns - begin_ns) * 400 // 1_000_000

    (clock,) = aligned(two_nodes(run, shifted, drifting)).meta[NODE_CLOCKS]
    assert clock["drift_ppm"] == pytest.approx(-400, rel=0.1)
    truth = build_ledger(run)
    found = build_ledger(two_nodes(run, shifted, drifting))
    for one, true in zip(found.rounds, truth.rounds, strict=True):
        assert one.components_ns["compute"] == pytest.approx(
            true.components_ns["compute"], abs=4 * clock["uncertainty_ns"] + 1_000_000
        )


def test_without_packets_at_both_ends_the_wall_clocks_are_believed() -> None:
    run = load_run(PATHS["rate"])
    told = two_nodes(run, shifted, lambda _: 0)
    events = told.events | {name: told.events[name].iloc[:0] for name in ("bursts", "packets")}
    (clock,) = aligned(dataclasses.replace(told, events=events)).meta[NODE_CLOCKS]
    assert clock["uncertainty_ns"] is None and clock["offset_ns"] == 0


def test_one_node_is_left_as_it_is() -> None:
    run = load_run(PATHS["rate"])
    assert aligned(run) is run
