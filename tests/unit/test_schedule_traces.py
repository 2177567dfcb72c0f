"""Schedules from trace files: ztprobe's own columns, published rate traces and mahimahi's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.schedules import write_profile
from ztprobe.errors import UsageError
from ztprobe.profile.model import load_profile


def test_a_trace_is_a_schedule(tmp_path: Path) -> None:
    trace = "# drive 7\ntime_s, delay_ms ,rate_mbit\n0,20,10\n\n1.5,30,\n2,25,4\n"
    profile = load_profile(
        write_profile(tmp_path, "loss_pct: 1\nschedule: {trace_file: t.csv, repeat: true}", trace)
    )
    assert [(p.delay_ms, p.rate_mbit, p.loss_pct) for p in profile.steps] == [
        (20, 10, 1),
        (30, None, 1),
        (25, 4, 1),
    ]
    assert profile.schedule is not None
    assert profile.schedule.period_ns == 2_500_000_000  # the last row as long as the one before it


@pytest.mark.parametrize(
    ("trace", "line", "message"),
    [
        ("time_s,delay_ms\n0,1\n1,soon\n", 3, "delay_ms: expected a one-way delay in milliseconds.*'soon'"),
        ("time_s,delay_ms\n0,1\n1,-4\n", 3, "delay_ms: expected .*'-4'"),
        ("time_s,delay_ms\n0,1\n1,nan\n", 3, "delay_ms: expected .*'nan'"),
        ("time_s,delay_ms\n0,1\n2,1\n1,1\n", 4, "time_s: expected at least 2.01.*found 1"),
        ("time_s,delay_ms\n5,1\n6,1\n", 2, "time_s: expected 0, found 5"),
        ("time_s,delay\n0,1\n", 1, "expected columns of time_s, delay_ms.*found delay"),
        ("delay_ms\n1\n", 1, "found no time_s"),
        ("time_s,delay_ms,delay_ms\n0,1,1\n", 1, "found delay_ms"),
        ("time_s,delay_ms\n0,1,2\n", 2, "expected 2 values .time_s, delay_ms., found 3"),
        ("time_s,delay_ms\n0,1\n", 1, "expected 2 to 10000 rows below a line with the columns, found 1"),
        ("", 1, "found 0"),
        ("time_s,delay_ms,jitter_ms\n0,1,0\n1,9,2\n", 3, "jitter_ms: expected a distribution"),
    ],
)
def test_a_wrong_trace_gets_its_own_line(tmp_path: Path, trace: str, line: int, message: str) -> None:
    path = write_profile(tmp_path, "schedule: {trace_file: t.csv}", trace)
    with pytest.raises(UsageError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{tmp_path / 't.csv'}:{line}: ")


@pytest.mark.parametrize(
    ("trace", "line"),
    [
        ('time_s,delay_ms\n0,1\n1,"2\n3,4\n' + "5,6\n" * 50_000, 3),
        ('"time_s,delay_ms\n0,1\n', 1),
        ('time_s,delay_ms\n0,"1" x\n', 2),
    ],
)
def test_an_open_quote_is_named_where_it_begins(tmp_path: Path, trace: str, line: int) -> None:
    path = write_profile(tmp_path, "schedule: {trace_file: t.csv}", trace)
    with pytest.raises(UsageError) as raised:
        load_profile(path)
    problem = "a quote that is opened here is not closed on its line"
    assert str(raised.value) == f"{tmp_path / 't.csv'}:{line}: {problem}"


def rates(path: Path) -> list[tuple[float, float | None]]:
    return [(step.loss_pct, step.rate_mbit) for step in load_profile(path).steps]


def test_a_rate_of_0_is_an_outage(tmp_path: Path) -> None:
    trace = "time_s,delay_ms,rate_mbit\n0,20,10\n1,20,0\n2,20,0.0\n3,20,4\n"
    assert rates(write_profile(tmp_path, "schedule: {trace_file: t.csv}", trace)) == [
        *((0, 10), (100, 10), (100, 10)),  # what is queued goes on at the rate it had
        (0, 4),
    ]
    begins = "time_s,rate_mbit\n0,0\n1,\n2,0\n3,7\n"
    assert rates(write_profile(tmp_path, "schedule: {trace_file: t.csv}", begins)) == [
        (100, 7),
        (0, None),
        (100, None),
        (0, 7),
    ]
    path = write_profile(tmp_path, "schedule: {trace_file: t.csv}", trace.replace("0.0", "0.001"))
    with pytest.raises(
        UsageError, match=r"t.csv:4: rate_mbit: expected .*, or 0 for an outage, found '0.001'"
    ):
        load_profile(path)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
def test_a_published_rate_trace_is_read_as_it_is(tmp_path: Path, separator: str) -> None:
    rows = [("0.613", "4.5"), ("1.627", "0"), ("2.640", "0.87e0")]
    trace = "".join(f"{separator.join(row)}\n" for row in rows)
    path = write_profile(tmp_path, "delay_ms: 30\nschedule: {trace_file: t.csv, repeat: true}", trace)
    assert rates(path) == [(0, 4.5), (100, 4.5), (0, 0.87)]
    schedule = load_profile(path).schedule
    assert schedule is not None
    assert [step.at_ns for step in schedule.steps] == [0, 1_014_000_000, 2_027_000_000]
    assert schedule.period_ns == 3_040_000_000
    assert {step.delay_ms for step in schedule.steps} == {30}


def test_a_mahimahi_trace_is_the_mean_rate_of_each_second(tmp_path: Path) -> None:
    # 100 packets in the first second (its last at 1000 ms), none in the second, 50 in half of the third.
    packets = [10 * n for n in range(1, 101)] + [2000 + 10 * n for n in range(1, 51)]
    trace = "".join(f"{at_ms}\n" for at_ms in packets)
    path = write_profile(tmp_path, "schedule: {trace_file: t.csv, repeat: true}", trace)
    assert rates(path) == [(0, 1.2), (100, 1.2), (0, 1.2)]
    schedule = load_profile(path).schedule
    assert schedule is not None and schedule.period_ns == 2_500_000_000


@pytest.mark.parametrize(
    ("trace", "line", "message"),
    [
        ("5\n3\n", 2, "expected a whole number of milliseconds, at least 5 .the row before., found '3'"),
        ("5\nx\n", 2, "expected a whole number of milliseconds"),
        ("5\n6,7\n", 2, "expected a whole number of milliseconds"),
        ("5\n900\n", 1, "expected 2 to 10000 seconds of a mahimahi trace, found 1"),
        (
            "0 1\n1 x\n",
            2,
            "rate_mbit: expected a rate in Mbit/s, 0.01 to 100000, or 0 for an outage, found 'x'",
        ),
        ("0 1\n1\n", 2, "expected a time and a rate, found 1 values"),
        ("0 1\n0 2\n", 2, "time_s: expected at least 0.01"),
        ("0 1\n", 1, "expected 2 to 10000 rows"),
    ],
)
def test_a_wrong_published_trace_gets_its_own_line(
    tmp_path: Path, trace: str, line: int, message: str
) -> None:
    path = write_profile(tmp_path, "schedule: {trace_file: t.csv}", trace)
    with pytest.raises(UsageError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{tmp_path / 't.csv'}:{line}: ")


def test_too_many_rows_are_refused_at_the_row(tmp_path: Path) -> None:
    trace = "time_s,delay_ms\n" + "".join(f"{n},1\n" for n in range(10_001))
    path = write_profile(tmp_path, "schedule: {trace_file: t.csv}", trace)
    with pytest.raises(UsageError, match=r"t.csv:10002: expected at most 10000 rows, found more"):
        load_profile(path)


def test_files_elsewhere_are_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:$6$salt:19000\n" * 3)
    (tmp_path / "profiles").mkdir()
    path = write_profile(tmp_path / "profiles", "schedule: {trace_file: ../secret}")
    with pytest.raises(UsageError) as raised:
        load_profile(path)
    assert "salt" not in str(raised.value)
