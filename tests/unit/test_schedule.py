"""Schedules: what is in force when, and how profile files say it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.schedules import HEAD, S, every, write_profile
from ztprobe.errors import UsageError
from ztprobe.profile.model import Profile, load_profile
from ztprobe.profile.schedule import Schedule, Step


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


def test_steps_override_the_profile(tmp_path: Path) -> None:
    path = write_profile(
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
