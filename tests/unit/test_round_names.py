"""Rounds that a log without a clock names, and whose times are the traffic's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from analysis.rounds.round_source import named
from analysis.rounds.traffic_pattern import infer_rounds
from tests.unit.round_traffic import FIVE, MS, Traffic


def told(
    traffic: Traffic, received_ns: Sequence[int], uncertainty_ns: int, first: int = 1
) -> list[dict[str, object]]:
    return [
        {"event": "round_start", "round": number, "time_monotonic_ns": ns, "uncertainty_ns": uncertainty_ns}
        for number, ns in enumerate(received_ns, first)
    ]


def test_a_log_names_the_rounds_and_the_traffic_times_them() -> None:
    traffic = Traffic(FIVE[:3])
    for _ in range(6):
        traffic.round(evaluates=True)
    rounds = infer_rounds(traffic.transfers)
    late = [start_ns + (i % 4) * 200 * MS for i, (start_ns, _) in enumerate(traffic.truth)]
    pairs = named(told(traffic, late, 750 * MS), rounds)
    assert [(name.number, one) for name, one in pairs] == list(enumerate(rounds, 1))


def test_a_line_that_came_too_late_is_the_round_between_its_neighbours() -> None:
    """The third's and the last's come later than the log says that they may; a busy machine does that."""
    traffic = Traffic(FIVE[:3])
    for _ in range(6):
        traffic.round(evaluates=True)
    inferred = infer_rounds(traffic.transfers)
    rounds = [dataclasses.replace(one, start_uncertainty_ns=MS) for one in inferred]
    late = [start_ns + (1_300 if i in (2, 5) else 200) * MS for i, (start_ns, _) in enumerate(traffic.truth)]
    lines = told(traffic, late, 750 * MS)
    assert [(name.number, one) for name, one in named(lines, rounds)] == list(enumerate(rounds, 1))
    # Where one more was seen than was told, nobody knows which it was.
    without = [lines[i] for i in (0, 1, 2, 4, 5)]
    pairs = named(without, rounds)
    assert [(name.number, rounds.index(one)) for name, one in pairs] == [(1, 0), (2, 1), (5, 4), (6, 5)]


def test_lines_that_came_all_at_once_name_the_last_rounds() -> None:
    traffic = Traffic(FIVE[:3])
    for _ in range(6):
        traffic.round(evaluates=True)
    rounds = infer_rounds(traffic.transfers)
    at_once = [traffic.now_ns] * 4  # of rounds 3 to 6
    pairs = named(told(traffic, at_once, 750 * MS, first=3), rounds)
    assert [(name.number, one) for name, one in pairs] == list(enumerate(rounds[2:], 3))


def test_a_log_that_tells_more_rounds_than_were_seen() -> None:
    """Attached in the middle: the log was read from its beginning."""
    traffic = Traffic(FIVE[:3])
    for _ in range(6):
        traffic.round()
    seen = [one for one in traffic.transfers if one.first_ns >= traffic.truth[2][0]]
    pairs = named(told(traffic, [start for start, _ in traffic.truth], 20 * MS), infer_rounds(seen))
    assert [name.number for name, _ in pairs] == [3, 4, 5, 6]


def test_what_a_log_says_of_a_round_is_kept() -> None:
    traffic = Traffic(FIVE[:2])
    traffic.round(evaluates=True)
    (start,) = told(traffic, [traffic.truth[0][0]], 20 * MS)
    events = [
        start,
        {"event": "wait_end", "round": 1, "results": 1, "failures": 1},
        {"event": "evaluate_end", "round": 1, "results": 2, "failures": 0},
    ]
    ((name, _),) = named(events, infer_rounds(traffic.transfers))
    assert name.facts == {"results": 1, "failures": 1}
