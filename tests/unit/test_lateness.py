"""A delay line's account of when it was late, and what that means for a profile."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_delay_line import delay_line, start_ns
from ztprobe.emulation.delay_line.lateness import LATE_NS, SILENT_NS, Lateness, problem_in
from ztprobe.profile.tolerance import mean_tolerance_ms

MS, S = 10**6, 10**9


def test_what_is_let_go_in_time_is_not_late() -> None:
    lateness = Lateness()
    lateness.released([S, 2 * S], 2 * S + LATE_NS - S)
    lateness.released([5 * S - LATE_NS], 5 * S)
    assert lateness.as_dict() == {"packets": 0, "sum_ns": 0, "worst_ns": 0, "spans": []}


def test_what_is_near_is_one_span() -> None:
    lateness = Lateness()
    lateness.stood_still(S, 7 * S)
    lateness.released([S + 50 * MS, 2 * S, 7 * S], 7 * S + MS)
    lateness.stood_still(9 * S, 9 * S + 20 * MS)
    found = lateness.as_dict()
    assert found["packets"] == 2
    assert found["sum_ns"] == (6000 - 49 + 5001) * MS
    assert found["worst_ns"] == 6 * S
    assert found["spans"] == [
        {"from_ns": S, "to_ns": 7 * S + MS, "worst_ns": 6 * S, "packets": 2},
        {"from_ns": 9 * S, "to_ns": 9 * S + 20 * MS, "worst_ns": 20 * MS, "packets": 0},
    ]


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(LATE_NS + 1, 10 * S))))
def test_spans_are_few_in_order_and_cover_all(standstills: list[tuple[int, int]]) -> None:
    lateness = Lateness()
    ordered = sorted(standstills)
    for begin, length in ordered:
        lateness.stood_still(begin, begin + length)
    spans = lateness.as_dict()["spans"]
    assert len(spans) <= 200
    assert all(a["to_ns"] < b["from_ns"] for a, b in itertools.pairwise(spans))
    for begin, length in ordered:
        assert any(span["from_ns"] <= begin and begin + length <= span["to_ns"] for span in spans)
    assert lateness.worst_ns == max((length for _, length in ordered), default=0)


def test_packets_that_waited_through_a_standstill_are_as_old_as_they_say() -> None:
    line, _ = delay_line()
    now = start_ns(line) + 9 * S
    line.stood_still(now - 6 * S, now)
    line.take([(100, 1, now - 5 * S)], now, 0)
    assert line.next_due_ns == pytest.approx(now - 5 * S + 20 * MS, abs=1000)
    line.moved_on()
    line.flush()
    line.take([(100, 2, now - 5 * S)], now, 0)  # a stepped clock again
    assert line.next_due_ns == pytest.approx(now + 20 * MS, abs=1000)


def test_a_late_release_is_in_the_counters() -> None:
    line, _ = delay_line(delay_ns=0)
    line._zero_ns -= 10 * S
    line.take([(100, 1, 0), (100, 2, 0)], start_ns(line) + S, 0)
    line.release(start_ns(line) + 10 * S)
    late = line.lateness.as_dict()
    assert late["packets"] == 2
    assert late["worst_ns"] == pytest.approx(9 * S, abs=S)
    assert late["spans"][0]["from_ns"] == pytest.approx(start_ns(line) + S, abs=1000)


def a_line(sum_ms: int, packets: int, worst_ms: float = 5_998.914, **more: Any) -> dict[str, Any]:
    worst_ns = round(worst_ms * MS)
    spans = [{"from_ns": 90 * S, "to_ns": 99 * S, "worst_ns": worst_ns, "packets": 5}]
    late = {"packets": 5, "sum_ns": sum_ms * MS, "worst_ns": worst_ns, "spans": spans}
    return {"packets": {"a": packets}, "late": late, "written_ns": 100 * S, **more}


def test_lateness_beyond_what_the_profile_allows_is_a_problem() -> None:
    assert mean_tolerance_ms(80) == 0.8
    assert mean_tolerance_ms(5) == 0.2
    assert problem_in(a_line(79_000, 100_000), 80, 100 * S) is None
    said = problem_in(a_line(81_000, 100_000), 80, 100 * S)
    assert said is not None
    assert "late by 5999 ms at worst and by 0.81 ms in the mean, where 0.8 ms are allowed" in said


def test_a_busy_moment_is_none_but_many_are() -> None:
    assert problem_in(a_line(5_400, 2_500, worst_ms=101), 20, 100 * S) is None  # a beginning
    assert problem_in(a_line(25_000, 20_000, worst_ms=101), 20, 100 * S) is None
    assert problem_in(a_line(41_000, 20_000, worst_ms=101), 20, 100 * S) is not None


def test_what_was_late_before_does_not_count() -> None:
    before = a_line(81_000, 100_000)
    later = a_line(81_000, 100_100, written_ns=110 * S)
    assert problem_in(later, 80, 110 * S) is not None
    assert problem_in(later, 80, 110 * S, before) is None
    later["late"]["sum_ns"] += 9 * S
    later["late"]["spans"].append({"from_ns": 101 * S, "to_ns": 107 * S, "worst_ns": 6 * S, "packets": 3})
    assert "late by 6000 ms at worst and by 0.90 ms" in str(problem_in(later, 80, 110 * S, before))


def test_a_line_that_says_nothing_any_more_stands_still() -> None:
    assert problem_in(a_line(0, 1), 80, 100 * S + SILENT_NS) is None
    assert problem_in(a_line(0, 1), 80, 101 * S + SILENT_NS) == "the delay line has stood still for 16 s"
    assert problem_in({}, 80, S) is None
