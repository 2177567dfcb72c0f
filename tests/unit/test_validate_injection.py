"""Known cost inside the workload: off unless asked for, and logged as it really was."""

from __future__ import annotations

import io
import json
import time

import pytest

from fl.errors import ConfigError
from fl.events import EventLog
from fl.injection import Injection


def events(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_nothing_is_injected_by_default() -> None:
    stream = io.StringIO()
    injection, log = Injection.from_env({"POD_NAME": "fl-client-0"}), EventLog(stream)
    injection.compute(1, log)
    injection.aggregation(1, log)
    injection.cpu_wait(1, log)
    assert stream.getvalue() == ""


def test_lists_belong_to_a_pod_or_to_all() -> None:
    env = {
        "POD_NAME": "fl-client-1",
        "FL_INJECT_COMPUTE_SLEEP_MS": "fl-client-0=9,9;fl-client-1=0,20.5",
        "FL_INJECT_COMPUTE_BUSY_MS": "fl-client-0=9",
        "FL_INJECT_AGGREGATION_MS": "7,8",
    }
    found = Injection.from_env(env)
    assert (found.sleep_ms, found.busy_ms, found.aggregation_ms) == ((0.0, 20.5), (), (7.0, 8.0))


@pytest.mark.parametrize("text", ["ten", "5,-1", "5,,6", "nan", "fl-client-1=1e99"])
def test_what_is_no_list_of_milliseconds_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="FL_INJECT_AGGREGATION_MS"):
        Injection.from_env({"POD_NAME": "fl-client-1", "FL_INJECT_AGGREGATION_MS": text})


@pytest.mark.parametrize("kind", ["sleep", "busy"])
def test_the_time_that_passed_is_logged(kind: str) -> None:
    stream = io.StringIO()
    injection = Injection(**{f"{kind}_ms": (0.0, 20.0)})
    before_ns = time.monotonic_ns()
    injection.compute(1, EventLog(stream))
    injection.compute(2, EventLog(stream))
    injection.compute(3, EventLog(stream))
    after_ns = time.monotonic_ns()
    (event,) = events(stream)
    assert (event["event"], event["round"], event["kind"]) == ("injected", 2, kind)
    begin_ns, end_ns = event["begin_monotonic_ns"], event["end_monotonic_ns"]
    assert isinstance(begin_ns, int) and isinstance(end_ns, int)
    assert before_ns <= begin_ns < end_ns <= after_ns
    assert end_ns - begin_ns >= 20_000_000


def test_cpu_waiting_is_logged_where_asked_for() -> None:
    stream = io.StringIO()
    Injection.from_env({"FL_LOG_CPU_WAIT": "1"}).cpu_wait(4, EventLog(stream))
    for event in events(stream):  # a kernel without schedstat has none
        assert event["event"] == "cpu_wait" and isinstance(event["cpu_wait_ns"], int)
