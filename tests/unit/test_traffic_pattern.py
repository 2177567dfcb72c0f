"""Rounds from traffic alone: on recorded runs whose rounds are known, and on patterns made up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from analysis.evidence.reader import read_events
from analysis.ledger.connections import topology_of
from analysis.rounds.messages import TrafficTransfer, messages_of
from analysis.rounds.traffic_pattern import infer_rounds
from analysis.rounds.transfers import seen_on_wires
from analysis.run_checks import checked
from tests.unit.round_traffic import FIVE, MODEL_BYTES, MS, SECOND, Traffic
from ztprobe.rundir.store import load_run

DATA = Path(__file__).parents[1] / "data"
FLOWERS = ("1.42",)


@pytest.mark.parametrize("name", ["net2-sec3", "net2-sec3/baseline", "net2-sec3-reconnect", "net5-sec0"])
def test_recorded_runs_of_our_own_workload(name: str) -> None:
    run, _ = checked(load_run(DATA / name))
    rounds = infer_rounds(seen_on_wires(topology_of(run.meta, read_events(run.events))).at_clients)
    times = {(event["event"], event["round"]): event["time_monotonic_ns"] for event in run.rounds}
    numbers = sorted(number for event, number in times if event == "round_start")
    assert len(rounds) == len(numbers)
    for number, found in zip(numbers, rounds, strict=True):
        assert abs(found.start_ns - times["round_start", number]) <= 30 * MS
        # The last one's end is followed by nothing that would show it, and says so.
        assert abs(found.end_ns - times["round_end", number]) <= (
            30 * MS if number != numbers[-1] else found.end_uncertainty_ns
        )
        assert found.clients == ("fl-client-0", "fl-client-1") and found.evaluations == 0


def of_flower(version: str) -> tuple[list[TrafficTransfer], list[TrafficTransfer], list[tuple[int, int]]]:
    """An unmodified Flower job between idle times: turns between its processes, and its app's own rounds."""
    directory = DATA / "frameworks" / f"flower-{version}"
    transfers: dict[str, list[TrafficTransfer]] = {"clients": [], "server": []}
    for at, first_ns, last_ns, client, down, size in pd.read_parquet(directory / "transfers.parquet").values:
        transfers[at].append(TrafficTransfer(first_ns, last_ns, client, bool(down), size))
    events = [json.loads(line) for line in (directory / "rounds.jsonl").read_text().splitlines()]
    times = {(event["event"], event["round"]): event["time_monotonic_ns"] for event in events}
    numbers = sorted({number for _, number in times})
    truth = [(times["round_start", number], times["round_end", number]) for number in numbers]
    return transfers["clients"], transfers["server"], truth


@pytest.mark.parametrize("version", FLOWERS)
def test_unmodified_flower(version: str) -> None:
    at_clients, at_server, truth = of_flower(version)
    rounds = infer_rounds(at_clients, at_server)
    assert len(rounds) == len(truth)
    for (start_ns, end_ns), one in zip(truth, rounds, strict=True):
        assert abs(one.start_ns - start_ns) <= 50 * MS and abs(one.end_ns - end_ns) <= 50 * MS
        assert len(one.clients) == one.evaluations == 3


@pytest.mark.parametrize("version", FLOWERS)
def test_unmodified_flower_seen_from_its_clients_alone(version: str) -> None:
    at_clients, _, truth = of_flower(version)
    rounds = infer_rounds(at_clients)
    assert len(rounds) == len(truth)
    for (start_ns, end_ns), one in zip(truth, rounds, strict=True):
        assert abs(one.start_ns - start_ns) <= one.start_uncertainty_ns
        assert abs(one.end_ns - end_ns) <= one.end_uncertainty_ns


@pytest.mark.parametrize("parts", [1, 20])
@pytest.mark.parametrize("evaluates", [False, True])
def test_plain_rounds(evaluates: bool, parts: int) -> None:
    traffic = Traffic(FIVE, parts=parts)
    for _ in range(20):
        traffic.round(evaluates=evaluates)
    rounds = traffic.found()
    assert all(one.clients == tuple(FIVE) for one in rounds)
    assert all(one.evaluations == (5 if evaluates else 0) for one in rounds)


def test_idle_minutes_hold_no_rounds() -> None:
    traffic = Traffic(FIVE[:3])
    traffic.poll(600)
    assert infer_rounds(traffic.transfers) == []
    for _ in range(3):
        traffic.round(evaluates=True)
    traffic.poll(300)
    for _ in range(3):
        traffic.round(evaluates=True)
    traffic.poll(600)
    rounds = traffic.found()
    # Neither of the rounds beside the pause reaches into it.
    assert rounds[2].end_ns < traffic.truth[2][1] + SECOND
    assert rounds[3].start_ns > traffic.truth[3][0] - SECOND


def test_two_rounds_with_idle_time_between() -> None:
    traffic = Traffic(FIVE[:2])
    traffic.round()
    traffic.poll(120)
    traffic.round()
    rounds = traffic.found()
    assert rounds[0].end_ns < traffic.truth[0][1] + SECOND


def test_clients_that_are_missing() -> None:
    traffic = Traffic(FIVE)
    for i in range(20):
        missing = FIVE[i % 5] if i % 3 == 1 else None
        traffic.round([c for c in FIVE if c != missing], fails=[FIVE[(i + 2) % 5]] if i % 4 == 2 else ())
    rounds = traffic.found()
    assert [len(one.clients) for one in rounds].count(5) >= 8


def test_a_client_that_never_takes_part() -> None:
    traffic = Traffic(FIVE)
    for _ in range(5):
        traffic.round(FIVE[:2])
        traffic.poll(4)
    assert all(one.clients == tuple(FIVE[:2]) for one in traffic.found())


def test_a_sample_of_the_clients_each_round() -> None:
    traffic = Traffic([f"client-{i}" for i in range(12)], seed=3)
    for _ in range(20):
        traffic.round(traffic.random.sample(traffic.clients, 3), evaluates=True)
    assert all(len(one.clients) == 3 for one in traffic.found())


def test_clients_that_poll_take_part_one_after_the_other() -> None:
    traffic = Traffic(FIVE[:3])
    for _ in range(10):
        traffic.round(spread_ms=6000)
    assert all(len(one.clients) == 3 for one in traffic.found())


@pytest.mark.parametrize(("down", "up"), [(20_000, 20_000), (100_000_000, 100_000_000), (4_800_000, 24_000)])
def test_messages_of_any_size(down: int, up: int) -> None:
    traffic = Traffic(FIVE[:3], down_bytes=down, up_bytes=up)
    traffic.poll(10)
    for _ in range(6):
        traffic.round(evaluates=True)
    traffic.found()


def test_what_is_no_exchange_makes_no_round() -> None:
    traffic = Traffic(FIVE[:2])
    for i in range(10):  # somebody downloads a page every minute, somebody else uploads logs
        traffic.send("browser", (100 + 60 * i) * SECOND, True, 300_000)
        traffic.send("logger", (130 + 60 * i) * SECOND, False, 300_000)
    assert infer_rounds(traffic.transfers) == []


def test_an_attachment_in_the_middle_of_a_round() -> None:
    traffic = Traffic(FIVE[:3])
    for _ in range(4):
        traffic.round(evaluates=True)
    cut_ns = traffic.truth[0][0] + 350 * MS
    traffic.transfers = [one for one in traffic.transfers if one.first_ns > cut_ns]
    rounds = infer_rounds(traffic.transfers)
    assert len(rounds) == 3  # the one that had begun is not whole
    for (start_ns, _), one in zip(traffic.truth[1:], rounds, strict=True):
        assert 0 <= one.start_ns - start_ns <= 200 * MS


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("clients", [2, 3, 5])
def test_a_record_that_begins_or_ends_anywhere_in_a_round(
    clients: int, evaluates: bool, missing: bool
) -> None:
    """Between any two messages, one client's model before the record and another's in it."""
    for seed in range(8):
        traffic = Traffic(FIVE[:clients], seed=seed)
        for i in range(6):
            takes_part = FIVE[1:clients] if missing and i % 3 == 1 else None
            spread_ms, pause_ms = traffic.random.choice((1, 50, 200)), traffic.random.choice((0, 50))
            traffic.round(takes_part, evaluates=evaluates, spread_ms=spread_ms, pause_ms=pause_ms)
        everything, truth = traffic.transfers, traffic.truth
        first = [one for one in everything if one.first_ns < truth[0][1]]
        last = [one for one in everything if one.first_ns >= truth[-1][0]]
        for since_ns in {one.first_ns + 1 for one in first}:
            traffic.transfers = [one for one in everything if one.first_ns >= since_ns]
            traffic.truth = truth[1:]
            traffic.found()
        updates = [one.last_ns for one in last if not one.down and one.bytes == MODEL_BYTES]
        for until_ns in {one.last_ns for one in last if one.last_ns < max(updates)}:
            traffic.transfers = [one for one in everything if one.last_ns <= until_ns]
            traffic.truth = truth[:-1]
            traffic.found()


def test_a_client_that_dies_in_the_last_round() -> None:
    traffic = Traffic(FIVE[:3])
    for i in range(4):
        traffic.round(fails=FIVE[:1] if i == 3 else ())
    traffic.poll(60)  # it is not waited for: nothing that it was given long ago will be answered
    assert [len(one.clients) for one in traffic.found()] == [3, 3, 3, 2]


def test_asynchronous_training_has_no_rounds() -> None:
    traffic = Traffic(FIVE)
    for i, client in enumerate(FIVE):  # each at its own pace
        at_ns = traffic.now_ns + i * 130 * MS
        for _ in range(30):
            had_ns = traffic.send(client, at_ns, True, MODEL_BYTES)
            update_ns = traffic.send(client, had_ns + (700 + 190 * i) * MS, False, MODEL_BYTES)
            at_ns = update_ns + traffic.random.randrange(5, 30) * MS
    assert infer_rounds(traffic.transfers) == []


def test_a_server_that_does_not_wait_for_its_slowest_client() -> None:
    traffic = Traffic(FIVE)
    for i in range(12):
        traffic.round(FIVE[:4], pause_ms=20)
        if i % 2 == 0:  # the fifth gets every other model, and its update comes a round late
            start_ns = traffic.truth[-1][0]
            had_ns = traffic.send(FIVE[4], start_ns + 10 * MS, True, MODEL_BYTES)
            traffic.send(FIVE[4], had_ns + 1400 * MS, False, MODEL_BYTES)
    rounds = traffic.found()
    assert len(rounds) == 12


def test_evaluation_before_training() -> None:
    traffic = Traffic(FIVE[:3])
    for _ in range(5):
        start_ns = traffic.now_ns
        for client in traffic.clients:
            traffic.send(client, start_ns + 5 * MS, True, MODEL_BYTES)
        traffic.now_ns += 900 * MS
        traffic.round()
        traffic.truth[-1] = (start_ns, traffic.truth[-1][1])
    assert all(one.evaluations == 3 for one in traffic.found())


def test_a_hubs_server_bounds_the_rounds_itself() -> None:
    """Clients fetch seconds after the server has put a model into the hub; its own turns say when."""
    traffic = Traffic(FIVE[:3])
    at_server: list[TrafficTransfer] = []
    for i in range(4):
        begun_ns = traffic.now_ns
        # Later models are known to the hub already: their names are a hundredth of them.
        at_server.append(
            TrafficTransfer(begun_ns + 3 * MS, begun_ns + 40 * MS, "", True, 4_800_000 if i == 0 else 11_000)
        )
        traffic.now_ns += 2 * SECOND
        traffic.round(evaluates=True, pause_ms=0)
        at_server.append(TrafficTransfer(traffic.now_ns - 9 * MS, traffic.now_ns - 8 * MS, "", False, 9_000))
        at_server += polls(begun_ns, traffic.now_ns)
        traffic.truth[-1] = (begun_ns, traffic.now_ns)
    rounds = infer_rounds(traffic.transfers, at_server)
    for (start_ns, end_ns), one in zip(traffic.truth, rounds, strict=True):
        assert abs(one.start_ns - start_ns) <= 50 * MS and abs(one.end_ns - end_ns) <= 50 * MS
    assert all(one.start_uncertainty_ns <= 50 * MS for one in rounds[1:])


def polls(start_ns: int, end_ns: int) -> Iterator[TrafficTransfer]:
    for at_ns in range(start_ns + 500 * MS, end_ns - 100 * MS, 600 * MS):
        yield TrafficTransfer(at_ns, at_ns + MS, "", True, 400)
        yield TrafficTransfer(at_ns + MS, at_ns + 2 * MS, "", False, 300)


def test_parts_on_several_connections_are_one_message() -> None:
    parts = [TrafficTransfer(i * 10 * MS, i * 10 * MS + 15 * MS, "a", True, 1_000_000) for i in range(10)]
    (message,) = messages_of([*parts, TrafficTransfer(20 * MS, 21 * MS, "a", False, 500)])
    assert message.bytes == 10_000_000 and message.last_ns == 105 * MS
