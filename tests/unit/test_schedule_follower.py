"""Who follows a schedule: in time, late, refused, and until it is stopped."""

from __future__ import annotations

import json

from tests.unit.schedules import S, every
from ztprobe.emulation.schedule_follower import ScheduleFollower, ScheduleRunner
from ztprobe.errors import EnforcementError
from ztprobe.profile.model import Profile


def test_steps_that_are_late_left_out_or_refused_are_said() -> None:
    clock = [1000 * S]
    put: list[float] = []

    def change(step: Profile) -> tuple[int, int]:
        if step.delay_ms == 40:
            raise EnforcementError("pod-a: gone")
        put.append(step.delay_ms)
        return clock[0], clock[0] + 2_000_000

    schedule = every(1, *({"delay_ms": delay} for delay in (10.0, 20.0, 30.0, 40.0)), repeat=True)
    following = ScheduleRunner(Profile(name="x", schedule=schedule), change, lambda: clock[0])
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
