"""A moment of a saved run as people write it, and the policies that were in force then."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from analysis.recorded import objects_at
from analysis.results.moments import moment_ns
from tests.unit.recorded_run import recorded
from ztprobe.errors import UsageError
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run


def started_ns(number: int) -> int:
    return next(
        one["time_monotonic_ns"]
        for one in recorded().rounds
        if one["event"] == "round_start" and one["round"] == number
    )


def shown(at_ns: int, form: str) -> str:
    return datetime.fromtimestamp(Clock.of_run(recorded().meta).unix_ns(at_ns) / 1e9, UTC).strftime(form)


def test_a_round_stands_for_its_beginning() -> None:
    assert moment_ns(recorded(), "round3", "--at") == started_ns(3)
    with pytest.raises(UsageError, match="none of that number"):
        moment_ns(recorded(), "round99", "--at")


@pytest.mark.parametrize("form", ["%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%d %H:%M:%S.%f+00:00"])
def test_times_are_those_that_lists_of_events_show(form: str) -> None:
    wanted_ns = started_ns(2)
    assert moment_ns(recorded(), shown(wanted_ns, form), "--at") == pytest.approx(wanted_ns, abs=2_000)


@pytest.mark.parametrize("text", ["", "soon", "25:61:00", "2026-13-01", "-1", "round", "12:00"])
def test_what_is_no_time_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected a time such as|the run went on from"):
        moment_ns(recorded(), text, "--at")


def test_a_time_outside_of_the_run_names_the_runs() -> None:
    with pytest.raises(UsageError, match="the run went on from"):
        moment_ns(recorded(), "1999-01-01T00:00:00Z", "--at")


def test_policies_hold_from_their_change_on() -> None:
    later = [_policy("later")]
    at_ns = started_ns(2)
    run = _changed(recorded(), [{"time_monotonic_ns": at_ns, "objects": later}])
    before, after = objects_at(run, at_ns - 1), objects_at(run, at_ns)
    assert before is not None and after is not None
    assert "later" not in [policy.name for policy in before.policies]
    assert [policy.name for policy in after.policies] == ["later"]
    assert len(after.pods) == len(before.pods) > 0


def _policy(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "fl"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }


def _changed(run: Run, changes: list[dict[str, Any]]) -> Run:
    meta = run.meta | {"facts": run.meta.get("facts", {}) | {"object_changes": changes}}
    details = meta["enforcement"].get("details", {})
    if details.get("objects") is None:
        meta["enforcement"] = meta["enforcement"] | {"details": details | {"objects": [_policy("first")]}}
    return dataclasses.replace(run, meta=meta)
