"""Clients that ask a server themselves, by hand: late ones, heartbeats, questions that are held."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.values import Endpoint, Wire
from analysis.flows.client_path import ClientPath
from analysis.flows.client_paths import ClientPaths
from analysis.flows.processes import Process, Processes
from analysis.flows.roles import parts_of
from analysis.flows.turns import Channel, Turn
from analysis.intervals import paint

MS = 1_000_000
SERVER, EARLY, LATE = (
    Process(pid, participant=name) for pid, name in ((1, "server"), (2, "early"), (3, "late"))
)
MODEL_BYTES = 500_000
START_MS, READY_MS, END_MS = 0, 100, 3_000


def turn(client: Process, asks: bool, first_ms: float, last_ms: float, count: int) -> Turn:
    first_ns, last_ns = int(first_ms * MS), int(last_ms * MS)
    return Turn(
        speaker=client if asks else SERVER,
        listener=SERVER if asks else client,
        asks=asks,
        first_ns=first_ns,
        last_ns=last_ns,
        arrived_ns=first_ns,
        whole_ns=last_ns,
        read_ns=0,
        read_whole_ns=0,
        bytes=count,
        first_seq=0,
        pod="",
        key=Wire(Endpoint("a", client.pid), Endpoint("b", 80)),
    )


def asked(client: Process, at_ms: float, *, answer_ms: float | None = None, count: int = 100) -> list[Turn]:
    """A small request, and its answer: small as well (in vain), or a model."""
    begun_ms = at_ms + 2 if answer_ms is None else answer_ms
    took_ms = 0 if count < MODEL_BYTES else 10
    return [turn(client, True, at_ms, at_ms, 100), turn(client, False, begun_ms, begun_ms + took_ms, count)]


def update(client: Process, at_ms: float) -> list[Turn]:
    return [
        turn(client, True, at_ms, at_ms + 50, MODEL_BYTES),
        turn(client, False, at_ms + 51, at_ms + 51, 60),
    ]


def ways_of(*channels: list[Turn], late_opened_ms: int = 0) -> ClientPaths:
    """:param late_opened_ms: when the last one's connection was opened; 0: before the trace."""
    made = [Channel(turns[0].key, 0, sorted(turns, key=lambda one: one.first_ns)) for turns in channels]
    made[-1].opened_ns = late_opened_ms * MS
    roles = [
        {"name": one.participant, "role": "server" if one is SERVER else "client"}
        for one in (SERVER, EARLY, LATE)
    ]
    processes = Processes({"participants": roles}, pd.DataFrame({"how": []}))
    return ClientPaths(parts_of(processes, made), made, processes)


def milliseconds(way: ClientPath) -> list[tuple[str, float]]:
    pieces = paint(START_MS * MS, END_MS * MS, way.base, [])
    return [(one.component, (one.end_ns - one.start_ns) / MS) for one in pieces]


def phase_of(ways: ClientPaths, ready_ms: int = READY_MS) -> dict[str, ClientPath]:
    (phase,) = ways.phases(START_MS * MS, END_MS * MS, ready_ms * MS)
    return ways.of_phase(phase)


EARLY_ONE = [
    *(one for at_ms in (-900, -500, -100) for one in asked(EARLY, at_ms)),
    *asked(EARLY, 300, answer_ms=310, count=MODEL_BYTES),
    *update(EARLY, 800),
]
LATE_ONE = [
    *(one for at_ms in (-1_100, -700, -300) for one in asked(LATE, at_ms)),
    *asked(LATE, 900, answer_ms=910, count=MODEL_BYTES),
    *update(LATE, 2_000),
]


def test_a_client_that_asks_after_another_has_answered_is_of_the_same_phase() -> None:
    """And what it did not ask for, although it was there, is its wait."""
    found = phase_of(ways_of(EARLY_ONE, LATE_ONE))
    assert milliseconds(found["early"])[:4] == [
        ("server", 100),
        ("poll_wait", 200),
        ("server", 10),
        ("transmission", 10),
    ]
    assert milliseconds(found["late"])[:5] == [
        ("server", 100),
        ("poll_wait", 800),
        ("server", 10),
        ("transmission", 10),
        ("compute", 1_080),
    ]
    assert found["late"].compute == (920 * MS, 2_000 * MS)


def test_without_a_word_of_the_application_what_comes_before_the_model_is_the_servers() -> None:
    found = phase_of(ways_of(EARLY_ONE, LATE_ONE), ready_ms=-1)
    assert milliseconds(found["late"])[:2] == [("server", 910), ("transmission", 10)]


def test_while_a_client_was_not_there_nobody_waited_for_the_server() -> None:
    """It came 600 ms into the round: its connection is the first that it ever had."""
    came = [*asked(LATE, 605, answer_ms=620, count=MODEL_BYTES), *update(LATE, 2_000)]
    late = phase_of(ways_of(EARLY_ONE, came, late_opened_ms=600))["late"]
    assert milliseconds(late)[:4] == [
        ("server", 100),
        ("residual", 500),
        ("server", 20),
        ("transmission", 10),
    ]
    # The application says nothing: another one's model was there by then.
    late = phase_of(ways_of(EARLY_ONE, came, late_opened_ms=600), ready_ms=-1)["late"]
    assert milliseconds(late)[:3] == [("server", 310), ("residual", 290), ("server", 20)]


def test_a_second_model_for_a_client_that_has_answered_begins_a_new_phase() -> None:
    again = [*EARLY_ONE, *asked(EARLY, 1_500, answer_ms=1_510, count=MODEL_BYTES)]
    phases = ways_of(again, LATE_ONE).phases(START_MS * MS, END_MS * MS)
    assert [phase.start_ns for phase in phases] == [START_MS * MS, 1_510 * MS]


def test_heartbeats_beside_the_work_belong_to_no_message() -> None:
    beating = [*LATE_ONE, *(one for at_ms in range(1_000, 2_000, 190) for one in asked(LATE, at_ms))]
    found = phase_of(ways_of(EARLY_ONE, beating))
    assert found["late"].compute == (920 * MS, 2_000 * MS)


def test_a_question_that_is_held_after_an_update_is_not_its_confirmation() -> None:
    waiting = [*EARLY_ONE, *asked(EARLY, 855, answer_ms=2_900)]
    assert phase_of(ways_of(waiting, LATE_ONE))["early"].arrival_ns == 851 * MS


def test_control_frames_that_nobody_answers_are_no_polls() -> None:
    """A model that is pushed in pieces, for each of which its reader makes room; nobody asked for it."""
    pushed = [
        turn(LATE, False, 900, 1_000, MODEL_BYTES),
        *(
            one
            for at_ms in (1_001, 1_111, 1_221)
            for one in (
                turn(LATE, True, at_ms, at_ms, 52),
                turn(LATE, False, at_ms + 5, at_ms + 100, MODEL_BYTES),
            )
        ),
        *update(LATE, 2_000)[:1],
        turn(LATE, False, 2_900, 2_900, 90),
    ]
    late = phase_of(ways_of(EARLY_ONE, pushed))["late"]
    assert milliseconds(late)[:2] == [("server", 900), ("transmission", 100)]
    assert late.compute == (1_321 * MS, 2_000 * MS)
    # What the server says 850 ms later is no answer to the update.
    assert late.arrival_ns == 2_050 * MS
