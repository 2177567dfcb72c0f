"""Both clocks, converted by a run's samples."""

from __future__ import annotations

import time

import pytest

from ztprobe.rundir.clock import Clock, ClockSample, take_sample

UNIX = 1_760_000_000_000_000_000


def clock(*pairs: tuple[int, int]) -> Clock:
    return Clock(ClockSample(time_monotonic_ns=mono, time_unix_ns=unix) for mono, unix in pairs)


def test_one_sample_is_an_offset() -> None:
    one = clock((1_000, UNIX + 1_000))
    assert one.unix_ns(0) == UNIX
    assert one.unix_ns(123_456_789) == UNIX + 123_456_789
    assert one.offset_change_ns == 0


def test_between_samples_the_offset_is_interpolated_and_outside_it_holds() -> None:
    second = 1_000_000_000
    drifting = clock((10 * second, UNIX + 10 * second + 50_000), (0, UNIX))
    assert drifting.offset_ns(5 * second) == UNIX + 25_000
    assert drifting.offset_ns(-second) == UNIX
    assert drifting.offset_ns(20 * second) == UNIX + 50_000
    assert drifting.offset_change_ns == 50_000
    for mono, offset in ((0, 0), (5 * second, 25_000), (12 * second, 50_000)):
        assert drifting.unix_ns(mono) == UNIX + mono + offset


def test_two_samples_at_one_instant_do_not_divide_by_zero() -> None:
    twice = clock((5, UNIX + 5), (5, UNIX + 6))
    assert twice.unix_ns(5) in (UNIX + 5, UNIX + 6)
    assert twice.offset_change_ns == 1


def test_without_samples_there_is_no_clock() -> None:
    with pytest.raises(ValueError, match="no clock sample"):
        Clock([])


def test_a_sample_is_now() -> None:
    before = time.monotonic_ns(), time.time_ns()
    sample = take_sample()
    after = time.monotonic_ns(), time.time_ns()
    assert before[0] <= sample.time_monotonic_ns <= after[0]
    assert before[1] <= sample.time_unix_ns <= after[1]
