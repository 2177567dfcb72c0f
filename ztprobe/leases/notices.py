"""Profiles that `ztprobe profile` puts on a run's pods while the run goes on, for the run's own record.

A traced run knows what it has put into force itself. What somebody else puts on its pods for a
time changes its rounds just as much, so whoever keeps such a lease leaves a line beside the run's
journal (``/run/ztprobe/RUN/profiles.jsonl``, which the run makes): when it began to apply the
profile, every change of it, and when it had taken it away. Times are CLOCK_MONOTONIC, the clock of
the kernel's events.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ztprobe import paths
from ztprobe.leases.records import Lease
from ztprobe.profile.model import Profile
from ztprobe.profile.schedule import CHANGING
from ztprobe.rundir import files

__all__ = ("FILE", "merged", "tell_applied", "tell_changed", "tell_ended", "words")

FILE = "profiles.jsonl"

_FEW = 3


def tell_applied(lease: Lease, from_ns: int) -> None:
    """It is in force, and may have been since ``from_ns``."""
    _tell(
        lease,
        "profile_applied",
        at_ns=from_ns,
        profile=lease.profile.name,
        backend=lease.backend,
        direction=lease.direction,
        to=lease.to,
        values=_values(lease.profile.steps[0]),
    )


def tell_changed(lease: Lease, step: Profile, at_ns: int) -> None:
    """Its schedule has come to another step."""
    _tell(lease, "profile_changed", at_ns=at_ns, values=_values(step))


def tell_ended(lease: Lease) -> None:
    """It is not in force any more. Said twice, the first time counts."""
    _tell(lease, "profile_ended", at_ns=time.monotonic_ns(), profile=lease.profile.name)


def merged(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was told, one entry a lease, for run.json. An entry that nobody ended has no ``to_ns``."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        at_ns, values = event["at_ns"], event.get("values", {})
        if event["event"] == "profile_applied":
            keys = ("lease", "profile", "backend", "direction", "to", "pods")
            found[event["lease"]] = {key: event[key] for key in keys} | {
                "from_ns": at_ns,
                "to_ns": None,
                "changes": [{"at_ns": at_ns, **values}],
            }
        elif (entry := found.get(event["lease"])) is not None:
            if event["event"] == "profile_changed":
                entry["changes"].append({"at_ns": at_ns, **values})
            elif entry["to_ns"] is None:
                entry["to_ns"] = at_ns
    return list(found.values())


def words(event: Mapping[str, Any]) -> str | None:
    """What to tell whoever watches the run; None: nothing."""
    if event["event"] == "profile_applied":
        pods = event["pods"]
        whose = ", ".join(pods) if len(pods) <= _FEW else f"{len(pods)} pods"
        way = "both directions" if event["direction"] == "both" else event["direction"]
        what = f"{event['profile']} is now on {way} of {whose} as well"
        return f"{what} (lease {event['lease']})"
    if event["event"] == "profile_ended":
        return f"{event['profile']} is off again (lease {event['lease']})"
    return None


def _values(profile: Profile) -> dict[str, Any]:
    return {key: getattr(profile, key) for key in CHANGING}


def _tell(lease: Lease, event: str, **more: Any) -> None:
    for run in sorted({pod.run for pod in lease.pods if pod.run}):
        pods = [pod.name for pod in lease.pods if pod.run == run]
        line = json.dumps({"event": event, "lease": lease.id, "pods": pods, **more})
        # Not made here: a run that ends takes its directory along, and nothing must appear in it again.
        with contextlib.suppress(OSError):
            files.append(paths.STATE_DIR / run / FILE, f"{line}\n".encode(), make=False)
