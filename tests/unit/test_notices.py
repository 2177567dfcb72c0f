"""What keepers of leases tell the runs whose pods they change."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.unit.test_leases import a_lease, state
from ztprobe.leases import notices
from ztprobe.profile.model import Profile
from ztprobe.profile.schedule import Schedule, Step

__all__ = ("state",)  # the fixture

SCHEDULE = Schedule(steps=(Step(at_ns=0, delay_ms=20), Step(at_ns=10**9, delay_ms=50, rate_mbit=10)))


def told(state: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (state / "r" / notices.FILE).read_text().splitlines()]


def test_a_lease_is_told_from_its_beginning_to_its_end(state: Path) -> None:
    (state / "r").mkdir(parents=True)
    (state / "r" / notices.FILE).touch()
    lease = a_lease(Profile(name="moving", schedule=SCHEDULE))
    began_ns = time.monotonic_ns()
    notices.tell_applied(lease, began_ns)
    notices.tell_changed(lease, lease.profile.steps[1], began_ns + 7)
    notices.tell_ended(lease)
    notices.tell_ended(lease)  # by a second process, for safety
    events = told(state)
    (entry,) = notices.merged(events)
    assert {key: entry[key] for key in ("lease", "profile", "backend", "direction", "to", "pods")} == {
        "lease": lease.id, "profile": "moving", "backend": "netem", "direction": "both", "to": "app=y",
        "pods": ["p"],
    }  # fmt: skip
    assert entry["from_ns"] == began_ns
    assert entry["to_ns"] == events[2]["at_ns"] >= began_ns
    assert [(c["at_ns"] - began_ns, c["delay_ms"], c["rate_mbit"]) for c in entry["changes"]] == [
        (0, 20, None), (7, 50, 10),
    ]  # fmt: skip
    assert notices.words(events[0]) == f"moving is now on both directions of p as well (lease {lease.id})"
    assert notices.words(events[1]) is None
    assert notices.words(events[2]) == f"moving is off again (lease {lease.id})"


def test_what_was_never_in_force_has_no_entry(state: Path) -> None:
    (state / "r").mkdir(parents=True)
    (state / "r" / notices.FILE).touch()
    notices.tell_ended(a_lease(Profile(name="refused", delay_ms=1)))
    assert notices.merged(told(state)) == []


def test_nothing_appears_in_a_run_that_is_over(state: Path) -> None:
    lease = a_lease(Profile(name="late", delay_ms=1))
    notices.tell_ended(lease)
    assert not state.exists()
    (state / "r").mkdir(parents=True)  # being removed
    notices.tell_ended(lease)
    assert list((state / "r").iterdir()) == []
