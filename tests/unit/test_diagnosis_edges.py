"""What a diagnosis says of an edge aggregator that ended, of its clients, and of who only ended with it."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from analysis.causes.case import case_of
from analysis.causes.diagnosis import diagnose_run
from analysis.causes.diagnosis_text import diagnosis_lines
from ztprobe.experiment.followers import await_followers
from ztprobe.rundir.store import Run, load_run

# Four clients behind two edges; fl-edge-1 was killed half a second into round 2.
RECORDED = Path(__file__).parents[1] / "data/failed/application-edge-died"
EDGE, BEHIND = "fl-edge-1", ("fl-client-2", "fl-client-3")
NS = 1_000_000_000


@functools.cache
def killed() -> Run:
    return load_run(RECORDED)


def at_ns() -> int:
    """When the edge's end was noted."""
    return int(killed().meta["exits"][0]["at_ns"])


def ended(*exits: tuple[str, int], **meta: Any) -> dict[str, Any]:
    """The diagnosis of that run, had these processes ended in place of the edge."""
    noted = [{"process": process, "status": status, "at_ns": at_ns()} for process, status in exits]
    return diagnose_run(dataclasses.replace(killed(), meta={**killed().meta, "exits": noted, **meta}))


def ids(found: dict[str, Any]) -> list[str]:
    return [one["id"] for one in found["causes"]]


def test_a_killed_edge_is_the_cause_with_its_clients_and_its_round() -> None:
    found = diagnose_run(killed())
    assert ids(found) == ["application.edge_died"]
    (cause,) = found["causes"]
    assert cause["summary"] == (
        "fl-edge-1/edge, an edge aggregator, was killed by SIGKILL in round 2; "
        "behind it, fl-client-2 and fl-client-3 could not take part"
    )
    assert cause["pods"] == [EDGE]
    assert cause["confidence"] > 0.9
    assert cause["cost"]["rounds"] == [2]
    assert tuple(cause["details"]["clients"]) == BEHIND
    assert "its clients reach the server through it alone" in cause["remedy"]["words"]
    assert any("fl-edge-1/edge, an edge aggregator" in line for line in diagnosis_lines(found))


def test_the_evidence_is_what_the_kernel_saw_of_its_connections() -> None:
    cause = diagnose_run(killed())["causes"][0]
    timeline = cause["timeline"]
    assert [one["number"] for one in timeline] == list(range(1, len(timeline) + 1))
    times = [one["time_unix_s"] for one in timeline]
    assert times == sorted(times)
    closed = {one["event"] for one in timeline if " closes " in one["event"]}
    assert closed == {
        "fl-edge-1/edge closes fl-edge-1 -> fl-server:50051 (FIN)",
        *(f"fl-edge-1/edge closes {client} -> fl-edge-1:50051 (FIN)" for client in BEHIND),
    }
    # It was gone when its connections closed, and not only when somebody looked.
    (noted,) = [one["time_unix_s"] for one in timeline if "was killed" in one["event"]]
    since = cause["details"]["since_unix_s"]
    assert since == min(one["time_unix_s"] for one in timeline if " closes " in one["event"])
    assert noted - 1 < since < noted
    assert timeline[0]["event"].startswith("last data on ")
    assert timeline[-1]["event"].startswith("round 2, 0.6 s old, has no update of fl-edge-1")


def test_of_an_edge_out_of_memory_the_kernels_word_goes_first_and_names_its_clients() -> None:
    process, limit = f"{EDGE}/edge", {"memory_limit_bytes": 64 << 20}
    counters = [
        {"at_ns": at_ns() + after, "pods": {}, "containers": {process: {"oom_kills": kills, **limit}}}
        for after, kills in ((-NS, 0), (NS // 10, 1))
    ]
    found = ended((process, -9), pod_counters=counters)
    assert ids(found) == ["resources.oom_kill", "application.edge_died"]
    first, second = found["causes"]
    assert "its limit of 64 MiB; behind it, fl-client-2 and fl-client-3" in first["summary"]
    assert first["confidence"] > 0.9 > 2 * second["confidence"]


@pytest.mark.parametrize(
    ("deadline_s", "least", "most"), [(300.0, 0.75, 0.85), (1.0, 0.2, 0.5), (None, 0.2, 0.5)]
)
def test_an_edge_that_ends_by_itself_had_its_reason_where_it_has_not_waited_in_vain(
    deadline_s: float | None, least: float, most: float
) -> None:
    facts = {**killed().meta["facts"], "round_deadline_s": deadline_s}
    found = ended((f"{EDGE}/edge", 1), facts=facts)
    assert ids(found) == ["application.edge_died"]
    assert least < found["causes"][0]["confidence"] < most
    assert "ended with status 1 in round 2" in found["causes"][0]["summary"]


def test_an_edge_that_ends_by_itself_takes_its_clients_with_it() -> None:
    """It gives them up first, so that their ends are noted before its own, or with it."""
    clients = [(f"{client}/client", 1) for client in BEHIND]
    found = ended(*clients, (f"{EDGE}/edge", 1))
    assert ids(found)[0] == "application.edge_died"
    assert found["causes"][0]["confidence"] == pytest.approx(0.8)
    # A client of another edge ended with an error, too: whatever ended both is not this edge.
    found = ended(("fl-client-0/client", 1), *clients, (f"{EDGE}/edge", 1))
    assert not [one for one in found["causes"] if one["confidence"] > 0.5]


@pytest.mark.parametrize(("status", "looks"), [(1, 2), (-9, 0)])
def test_who_ends_after_an_error_is_waited_for_and_nobody_after_a_kill(status: int, looks: int) -> None:
    exits, looked = [{"process": "fl-client-2/client", "status": status}], []

    def note() -> None:
        looked.append(len(exits))
        if len(looked) == 2:
            exits.append({"process": "fl-edge-1/edge", "status": 1})

    await_followers(note, exits)
    assert len(looked) >= looks
    assert (len(exits), bool(looked)) == ((2, True) if status > 0 else (1, False))


def test_a_client_that_dies_behind_an_edge_is_not_the_edges_doing() -> None:
    found = ended(("fl-client-2/client", -9))
    assert ids(found) == ["application.client_died"]
    assert found["causes"][0]["pods"] == ["fl-client-2"]
    # Nor where the edge ended with it.
    found = ended(("fl-client-2/client", -9), (f"{EDGE}/edge", 1))
    assert ids(found)[0] == "application.client_died"
    assert found["causes"][0]["summary"] == "fl-client-2/client was killed by SIGKILL"


def test_an_edge_that_ends_with_the_server_has_not_ended_the_run() -> None:
    found = ended(("fl-server/server", -9), (f"{EDGE}/edge", 1), ("fl-edge-0/edge", 1))
    assert ids(found)[0] == "application.server_died"


def test_an_edge_that_was_told_to_end_is_a_pod_that_was_and_so_is_a_client_behind_it() -> None:
    for process, more in ((f"{EDGE}/edge", "; behind it, fl-client-2"), ("fl-client-3/client", "")):
        containers = {process: {"oom_kills": 0}}
        counters = [{"at_ns": at_ns() - NS, "pods": {}, "containers": containers}]
        found = ended((process, 143), pod_counters=counters)
        assert ids(found) == ["application.pod_restarted"]
        assert f"were told to end{more}" in found["causes"][0]["summary"]


def test_an_edge_is_one_before_its_clients_have_got_through() -> None:
    """What tells is that they have tried to connect to it."""
    topology = {**killed().meta["topology"]}
    topology["serves"] = {pod: served for pod, served in topology["serves"].items() if pod != EDGE}
    case = case_of(dataclasses.replace(killed(), meta={**killed().meta, "topology": topology}))
    assert set(case.clients) == {"fl-edge-0", EDGE, *BEHIND}
    assert case.edges == case_of(killed()).edges
    assert len(case.participants) == 7
    assert ids(ended((f"{EDGE}/edge", -9), topology=topology)) == ["application.edge_died"]
