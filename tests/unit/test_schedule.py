"""Schedules: what is in force when, how files say it, and what is drawn of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztprobe.cli import main
from ztprobe.cli.rendering.schedule import plot, schedule_words
from ztprobe.emulation.schedule_follower import ScheduleFollower, ScheduleRunner
from ztprobe.errors import EnforcementError, UsageError
from ztprobe.profile.model import Profile, load_profile
from ztprobe.profile.schedule import Schedule, Step

S = 10**9


def every(seconds: float, *values: dict[str, Any], repeat: bool = False) -> Schedule:
    steps = tuple(Step(at_ns=round(i * seconds * S), **value) for i, value in enumerate(values))
    return Schedule(steps=steps, period_ns=round(len(steps) * seconds * S) if repeat else None)


@given(
    lengths_ns=st.lists(st.integers(1, 10**10), min_size=1, max_size=8),
    repeat=st.booleans(),
    elapsed_ns=st.integers(-S, 10**12),
)
def test_what_is_in_force_at_any_time(lengths_ns: list[int], repeat: bool, elapsed_ns: int) -> None:
    starts = [sum(lengths_ns[:i]) for i in range(len(lengths_ns))]
    total = sum(lengths_ns)
    steps = tuple(Step(at_ns=start, delay_ms=i) for i, start in enumerate(starts))
    schedule = Schedule(steps=steps, period_ns=total if repeat else None)
    found = schedule.at(elapsed_ns)
    # By walking, instead of by dividing.
    within, turn = max(0, elapsed_ns), 0
    while repeat and within >= total:
        skip = max(1, within // total)
        within, turn = within - skip * total, turn + skip
    walked = max(i for i, start in enumerate(starts) if start <= within)
    assert (found.step, found.number) == (walked, turn * len(steps) + walked)
    assert found.from_ns <= max(0, elapsed_ns)
    assert found.until_ns is None or found.until_ns > max(0, elapsed_ns)
    assert (found.until_ns is None) == (not repeat and walked == len(steps) - 1)
    if found.until_ns is not None:
        after = schedule.at(found.until_ns)
        assert (after.number, after.from_ns) == (found.number + 1, found.until_ns)


@pytest.mark.parametrize(
    ("times", "period"), [((), None), ((5,), None), ((0, 5, 5), None), ((0, 5), 5), ((0, 7, 3), None)]
)
def test_times_have_to_ascend(times: tuple[int, ...], period: int | None) -> None:
    with pytest.raises(ValueError, match="schedule: expected"):
        Schedule(steps=tuple(Step(at_ns=at) for at in times), period_ns=period)


def test_a_profile_takes_its_first_step_and_asks_for_all() -> None:
    schedule = every(
        1,
        {"loss_pct": 1.0},
        {"delay_ms": 50.0, "jitter_ms": 5.0, "distribution": "pareto"},
        {"delay_ms": 90.0, "rate_mbit": 10.0},
    )
    profile = Profile(name="x", delay_correlation_pct=30, loss_correlation_pct=20, schedule=schedule)
    assert (profile.delay_ms, profile.loss_pct, profile.rate_mbit) == (0, 1, None)
    first, second, third = profile.steps
    assert (first.delay_correlation_pct, first.loss_correlation_pct) == (0, 20)  # where it means something
    assert (second.delay_correlation_pct, second.loss_correlation_pct) == (30, 0)
    assert third.burst_bytes == 3 * 1514
    most = profile.widest
    assert (most.delay_ms, most.jitter_ms, most.distribution) == (90, 5, "pareto")
    assert (most.loss_pct, most.rate_mbit) == (1, 10)
    assert profile.per_packet
    assert not profile.is_empty
    assert {step.queue_limit_packets for step in profile.steps} == {profile.queue_limit_packets}
    assert profile.queue_limit_packets >= Profile(name="y", delay_ms=90).queue_limit_packets / 1000
    assert profile.queue_limit_packets >= Profile(name="y", delay_ms=50, jitter_ms=5, distribution="normal").queue_limit_packets  # fmt: skip  # noqa: E501
    plain = Profile(name="z", delay_ms=3)
    assert plain.steps == (plain,)
    assert plain.widest is plain


def test_what_no_step_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reorder_pct: expected delay_ms in a step of the schedule"):
        Profile(name="x", reorder_pct=5, schedule=every(1, {"loss_pct": 1.0}, {}))
    with pytest.raises(ValueError, match=r"schedule.steps.1.jitter_ms: expected at most delay_ms"):
        Profile(name="x", schedule=every(1, {}, {"jitter_ms": 1.0, "distribution": "normal"}))


def test_shipped_schedules() -> None:
    satellite, mobile = load_profile("net6"), load_profile("net7")
    assert satellite.schedule is not None
    assert satellite.schedule.period_ns == 60 * S
    assert {step.distribution for step in satellite.steps} == {"normal"}
    # Another satellite every 15 s: that is where a hand-over has just ended.
    assert [s.at_ns / S for s in satellite.schedule.steps[::2]] == [0, 15, 30, 45]
    assert mobile.schedule is not None
    assert mobile.schedule.period_ns == 60 * S
    assert [step.rate_mbit for step in mobile.steps] == [12, 9, 1.6, 9, 12]
    assert "illustrative" in mobile.source["schedule"]


HEAD = "name: x\ndescription: d\n"


def write(tmp_path: Path, text: str, trace: str | None = None) -> Path:
    if trace is not None:
        (tmp_path / "t.csv").write_text(trace)
    path = tmp_path / "p.yaml"
    path.write_text(f"{HEAD}{text}\nsource: {{schedule: me, delay_ms: me, jitter_ms: me, loss_pct: me}}\n")
    return path


def test_steps_override_the_profile(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "delay_ms: 20\njitter_ms: 2\ndistribution: normal\nschedule:\n  steps:\n"
        "  - {for_s: 2, loss_pct: 1}\n  - {for_s: 1.5, delay_ms: 40, jitter_ms: 0}\n  - {rate_mbit: 5}\n",
    )
    profile = load_profile(path)
    got = [(p.delay_ms, p.jitter_ms, p.distribution, p.loss_pct, p.rate_mbit) for p in profile.steps]
    assert got == [
        (20, 2, "normal", 1, None),
        (40, 0, "none", 0, None),
        (20, 2, "normal", 0, 5),
    ]
    assert profile.schedule is not None
    assert [step.at_ns for step in profile.schedule.steps] == [0, 2 * S, 3_500_000_000]
    assert profile.schedule.period_ns is None


def test_a_trace_is_a_schedule(tmp_path: Path) -> None:
    trace = "# drive 7\ntime_s, delay_ms ,rate_mbit\n0,20,10\n\n1.5,30,\n2,25,4\n"
    profile = load_profile(write(tmp_path, "loss_pct: 1\nschedule: {trace_file: t.csv, repeat: true}", trace))
    assert [(p.delay_ms, p.rate_mbit, p.loss_pct) for p in profile.steps] == [
        (20, 10, 1),
        (30, None, 1),
        (25, 4, 1),
    ]
    assert profile.schedule is not None
    assert profile.schedule.period_ns == 2_500_000_000  # the last row as long as the one before it


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("schedule: {repeat: true}", 3, "schedule: expected either steps or trace_file, found neither"),
        ("schedule: {steps: [{for_s: 1}], trace_file: a.csv}", 3, "found both"),
        ("schedule:\n  steps:\n  - {delay_ms: 2}\n  - {for_s: 1}", 5, "steps.0.for_s: expected how long .* found nothing"),  # noqa: E501
        ("schedule:\n  repeat: true\n  steps:\n  - {for_s: 1}\n  - {delay_ms: 2}", 7, "steps.1.for_s: expected how long"),  # noqa: E501
        ("schedule:\n  steps:\n  - {for_s: 0, delay_ms: 2}", 5, "steps.0.for_s: expected how long .*0"),
        ("schedule:\n  steps:\n  - {for_s: 1}\n  - for_s: 1\n    delay_ms: fast", 7, "steps.1.delay_ms: expected a one-way delay"),  # noqa: E501
        ("schedule:\n  steps:\n  - {for_s: 1, latency_ms: 2}", 5, "latency_ms: expected one of the keys for_s, delay_ms"),  # noqa: E501
        ("schedule:\n  steps:\n  - {for_s: 1}\n  - for_s: 1\n    jitter_ms: 3\n    delay_ms: 9", 7, "schedule.steps.1.jitter_ms: expected a distribution"),  # noqa: E501
        ("distribution: normal\nschedule:\n  steps:\n  - {for_s: 1}", 3, "distribution: expected jitter_ms above 0 in a step"),  # noqa: E501
        ("schedule: {steps: []}", 3, "schedule.steps: expected a list of steps"),
        ("schedule: {trace_file: nowhere.csv}", 3, "schedule.trace_file: expected a readable file, found .*nowhere.csv: No such file"),  # noqa: E501
        ("reorder_pct: 3\nschedule: {steps: [{for_s: 1}]}", 3, "reorder_pct: expected delay_ms in a step"),
    ],
)  # fmt: skip
def test_a_wrong_schedule_gets_file_line_key_and_expectation(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"{HEAD}{text}\nsource: {{schedule: me, reorder_pct: me}}\n")
    with pytest.raises(UsageError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(raised.value)


def test_a_schedule_names_its_source(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"{HEAD}schedule: {{steps: [{{for_s: 1}}]}}\nsource: {{delay_ms: me}}\n")
    with pytest.raises(UsageError, match=r":4: source.schedule: expected a text that says where"):
        load_profile(path)


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
    path = write(tmp_path, "schedule: {trace_file: t.csv}", trace)
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
    path = write(tmp_path, "schedule: {trace_file: t.csv}", trace)
    with pytest.raises(UsageError) as raised:
        load_profile(path)
    problem = "a quote that is opened here is not closed on its line"
    assert str(raised.value) == f"{tmp_path / 't.csv'}:{line}: {problem}"


def rates(path: Path) -> list[tuple[float, float | None]]:
    return [(step.loss_pct, step.rate_mbit) for step in load_profile(path).steps]


def test_a_rate_of_0_is_an_outage(tmp_path: Path) -> None:
    trace = "time_s,delay_ms,rate_mbit\n0,20,10\n1,20,0\n2,20,0.0\n3,20,4\n"
    assert rates(write(tmp_path, "schedule: {trace_file: t.csv}", trace)) == [
        *((0, 10), (100, 10), (100, 10)),  # what is queued goes on at the rate it had
        (0, 4),
    ]
    begins = "time_s,rate_mbit\n0,0\n1,\n2,0\n3,7\n"
    assert rates(write(tmp_path, "schedule: {trace_file: t.csv}", begins)) == [
        (100, 7),
        (0, None),
        (100, None),
        (0, 7),
    ]
    path = write(tmp_path, "schedule: {trace_file: t.csv}", trace.replace("0.0", "0.001"))
    with pytest.raises(
        UsageError, match=r"t.csv:4: rate_mbit: expected .*, or 0 for an outage, found '0.001'"
    ):
        load_profile(path)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
def test_a_published_rate_trace_is_read_as_it_is(tmp_path: Path, separator: str) -> None:
    rows = [("0.613", "4.5"), ("1.627", "0"), ("2.640", "0.87e0")]
    trace = "".join(f"{separator.join(row)}\n" for row in rows)
    path = write(tmp_path, "delay_ms: 30\nschedule: {trace_file: t.csv, repeat: true}", trace)
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
    path = write(tmp_path, "schedule: {trace_file: t.csv, repeat: true}", trace)
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
    path = write(tmp_path, "schedule: {trace_file: t.csv}", trace)
    with pytest.raises(UsageError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{tmp_path / 't.csv'}:{line}: ")


def test_too_many_rows_are_refused_at_the_row(tmp_path: Path) -> None:
    trace = "time_s,delay_ms\n" + "".join(f"{n},1\n" for n in range(10_001))
    path = write(tmp_path, "schedule: {trace_file: t.csv}", trace)
    with pytest.raises(UsageError, match=r"t.csv:10002: expected at most 10000 rows, found more"):
        load_profile(path)


def test_files_elsewhere_are_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:$6$salt:19000\n" * 3)
    (tmp_path / "profiles").mkdir()
    path = write(tmp_path / "profiles", "schedule: {trace_file: ../secret}")
    with pytest.raises(UsageError) as raised:
        load_profile(path)
    assert "salt" not in str(raised.value)


def test_steps_that_are_late_left_out_or_refused_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from ztprobe.emulation import schedule_follower

    clock = [1000 * S]
    monkeypatch.setattr(schedule_follower.time, "monotonic_ns", lambda: clock[0])
    put: list[float] = []

    def change(step: Profile) -> tuple[int, int]:
        if step.delay_ms == 40:
            raise EnforcementError("pod-a: gone")
        put.append(step.delay_ms)
        return clock[0], clock[0] + 2_000_000

    schedule = every(1, *({"delay_ms": delay} for delay in (10.0, 20.0, 30.0, 40.0)), repeat=True)
    following = ScheduleRunner(Profile(name="x", schedule=schedule), change)
    assert following.catch_up() is None  # nothing is due yet
    clock[0] += S
    in_time = following.catch_up()
    assert in_time is not None
    assert (in_time.step, in_time.problem) == (1, None)
    assert following.next_ns == 1002 * S
    clock[0] += S + 300_000_000
    late = following.catch_up()
    assert late is not None
    assert late.problem == "step 3 came 302 ms late"
    clock[0] = 1003 * S
    refused = following.catch_up()
    assert refused is not None
    assert (refused.at_ns, refused.problem) == (
        None,
        "step 4 could not be put into force: pod-a: gone",
    )
    clock[0] = 1006 * S
    skipping = following.catch_up()
    assert skipping is not None
    assert (skipping.number, skipping.step, skipping.skipped) == (6, 2, 2)
    assert skipping.problem == "2 steps before step 3 were left out: too late"
    assert put == [20, 30, 30]


def test_a_thread_follows_until_it_is_stopped() -> None:
    import time

    def change(step: Profile) -> tuple[int, int]:
        return time.monotonic_ns(), time.monotonic_ns()

    schedule = every(0.02, {"delay_ms": 1.0}, {"delay_ms": 2.0}, repeat=True)
    told: list[str] = []
    following = ScheduleFollower(Profile(name="x", schedule=schedule), change, told.append)
    deadline = time.monotonic() + 10
    while len(following.changes) < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    following.stop()
    record = following.record()
    assert [(c["number"] % 2, c["delay_ms"]) for c in record["changes"]] == [
        (c["step"], c["step"] + 1.0) for c in record["changes"]
    ]
    assert record["steps"][1] == {
        "from_s": 0.02, "delay_ms": 2.0, "jitter_ms": 0.0, "distribution": "none", "loss_pct": 0.0,
        "rate_mbit": None,
    }  # fmt: skip
    assert json.loads(json.dumps(record)) == record
    count = len(following.changes)
    time.sleep(0.05)
    assert len(following.changes) == count


def test_a_plot_is_small_and_shows_short_steps() -> None:
    for profile in (
        load_profile("net6"),
        load_profile("net7"),
        Profile(name="x", schedule=every(0.5, {"rate_mbit": 4.0}, {})),
    ):
        lines = plot(profile)
        assert max(map(len, lines)) <= 100
        assert len(lines) <= 20
        for width in (41, 80):
            assert max(map(len, plot(profile, width))) <= width
    satellite = plot(load_profile("net6"))
    assert satellite[0] == "delay [ms]"
    assert satellite[1].count("█") == 1  # the hand-over of 0.2 s at 60 ms
    assert satellite[-1].endswith("60 s")
    assert "∙" in "".join(plot(Profile(name="x", schedule=every(0.5, {"rate_mbit": 4.0}, {}))))


def test_schedules_in_a_few_words() -> None:
    assert schedule_words(load_profile("net7")) == (
        "5 steps in 60 s, again and again: delay 35 … 85 ms, rate 1.6 … 12 Mbit/s"
    )
    stays = Profile(name="x", schedule=every(2, {"delay_ms": 5.0}, {"delay_ms": 5.0, "rate_mbit": 1.0}))
    assert schedule_words(stays) == (
        "2 steps in 2 s, the last one stays: delay 5 ms, rate 1 Mbit/s or no limit"
    )


def test_show_draws_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    def show(*words: str) -> str:
        assert main(["profile", "show", *words]) == 0
        return capsys.readouterr().out

    shown = show("net6")
    assert "Huston" in shown
    assert "delay [ms]" in shown
    found = json.loads(show("net7", "--json"))
    assert found["schedule"]["repeat"] is True
    assert [step["for_s"] for step in found["schedule"]["steps"]] == [20, 10, 10, 10, 10]
    assert json.loads(show("net2", "--json"))["schedule"] is None
