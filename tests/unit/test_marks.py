"""What is marked on a client's way: each event of the round and no other, merged where it is crowded."""

from __future__ import annotations

import dataclasses

import pytest

from analysis.evidence.reader import read_events
from analysis.evidence.values import Wire
from analysis.ledger.ledger import build_ledger
from analysis.ledger.marks import _merged
from analysis.ledger.model import MARKS, Mark
from analysis.report.report import build_report
from analysis.report.timeline import timeline_data
from analysis.run_checks import checked
from tests.unit.recorded_run import RECORDED, recorded, truth
from ztprobe.rundir.store import load_run

RECONNECTING = RECORDED.parent / "net2-sec3-reconnect"


def test_what_was_sent_again_is_marked_as_often_as_it_was() -> None:
    run, _ = checked(recorded())
    known = read_events(run.events)
    marked = there = 0
    for one in truth().rounds:
        end_ns = one.start_ns + one.duration_ns
        for client in one.clients:
            assert all(one.start_ns <= mark.start_ns <= mark.end_ns <= end_ns for mark in client.marks)
            marked += sum(mark.times for mark in client.marks if mark.kind == "retransmission")
        there += sum(
            one.start_ns <= again.ts_ns <= end_ns
            for (_, key), rows in known.retransmissions.items()
            if isinstance(key, Wire)  # within a pod is nobody's way between two
            for again in rows
        )
    assert marked == there > 0


def test_every_connection_that_a_client_opens_is_marked() -> None:
    ledger = build_ledger(load_run(RECONNECTING))
    opened = 0
    for one in ledger.rounds:
        for client in one.clients:
            handshakes = sum(mark.times for mark in client.marks if mark.kind == "handshake")
            assert handshakes == client.syn_count
            opened += handshakes
    assert opened >= len(ledger.rounds) - 1  # a new connection for each round


def test_waiting_for_a_cpu_is_marked_where_a_thread_of_the_client_waited() -> None:
    run, _ = checked(recorded())
    waits = run.events["cpu_waits"]
    for one in truth().rounds:
        for client in one.clients:
            own = waits[waits["process"].str.startswith(f"{client.client}/")]
            for mark in (mark for mark in client.marks if mark.kind == "cpu_wait"):
                inside = own[(own["ts_ns"] >= mark.start_ns) & (own["since_ns"] <= mark.end_ns)]
                assert len(inside) >= 1


def test_what_is_close_together_is_one_mark() -> None:
    spans = [(0, 0), (5, 8), (9, 9), (10, 10), (30, 31)]
    assert list(_merged("drop", spans, 10)) == [
        Mark("drop", 0, 9, 3),
        Mark("drop", 10, 10, 1),
        Mark("drop", 30, 31, 1),
    ]
    assert list(_merged("drop", [], 10)) == []


@pytest.mark.parametrize("kind", MARKS)
def test_marks_cost_nothing_and_are_drawn(kind: str) -> None:
    """A ledger with a mark more has the same components; the page gets it in microseconds."""
    run, ledger = recorded(), truth()
    one = ledger.rounds[1]
    mark = Mark(kind, one.start_ns + 1_000_000, one.start_ns + 3_000_000, 2)
    clients = tuple(dataclasses.replace(client, marks=(mark,)) for client in one.clients)
    rounds = (ledger.rounds[0], dataclasses.replace(one, clients=clients), *ledger.rounds[2:])
    before, after = (
        build_report(run, each, None) for each in (ledger, dataclasses.replace(ledger, rounds=rounds))
    )
    assert after["components"] == before["components"]
    assert after["rounds"][1]["clients"][0]["marks"] == [[kind, 0.001, 0.003, 2]]
    data = timeline_data(after)
    assert data is not None
    assert data["rounds"][1][3][0][2] == [MARKS.index(kind), 1000, 2000, 2]
