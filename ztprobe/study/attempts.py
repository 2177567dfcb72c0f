"""What is kept of a study's attempts at a run that failed, and whether another one may be made."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from analysis.causes.diagnosis import top_cause
from analysis.results.study_files import CONTENTION, NOT_OF_DEPLOYMENT, failed_attempts
from ztprobe.errors import EnforcementError, RunDirError, WorkloadError, ZtprobeError
from ztprobe.rundir.store import dump_json, write_atomically
from ztprobe.study.plan import PlannedRun, Study
from ztprobe.study.run_maker import run_name

__all__ = (
    "FAILURES",
    "NotQuiet",
    "attempts_before",
    "class_of",
    "keep_failure",
    "keep_seen",
    "may_try",
    "place_of",
    "write_failure",
)


class NotQuiet(ZtprobeError):
    """Others used the machine while the rounds ran."""


# What makes an attempt a failed one. Anything else ends the study: the machine lacks something, a bug.
FAILURES: dict[type[ZtprobeError], str] = {
    EnforcementError: "not in force",
    WorkloadError: "workload",
    RunDirError: "storage",
    NotQuiet: CONTENTION,
}


def class_of(error: ZtprobeError, classes: Mapping[type[ZtprobeError], str] = FAILURES) -> str:
    """The class of an attempt that ended so."""
    return next(name for kind, name in classes.items() if isinstance(error, kind))


def may_try(study: Study, out: Path, planned: PlannedRun) -> bool:
    """Whether the plan allows one more attempt at a run that is not there."""
    return _own(attempts_before(out, planned)) <= study.retries


def keep_failure(
    out: Path, planned: PlannedRun, found: str, message: str, took_s: float, seen: Path | None = None
) -> str:
    """Write down an attempt, with what was seen of it.

    :param found: its class.
    :param seen: its unfinished directory; None: nothing else is there.
    :returns: the message, with files as they are kept.
    """
    kept = place_of(out, planned, attempts_before(out, planned))
    if seen is not None:
        keep_seen(seen, kept)
        message = message.replace(str(seen), str(kept))
    write_failure(kept, found, message, took_s)
    return message


def place_of(out: Path, planned: PlannedRun, before: Counter[str]) -> Path:
    """Where the next attempt that fails is kept."""
    return out / "attempts" / f"{run_name(planned)}-{before.total() + 1}"


def write_failure(kept: Path, found: str, message: str, took_s: float) -> None:
    """Say of an attempt that is kept why it failed."""
    failure = {"class": found, "cause": top_cause(kept), "message": message, "took_s": took_s}
    write_atomically(kept / "failure.json", dump_json(failure))


def _own(before: Counter[str]) -> int:
    """Attempts that were spoiled by nothing but the run itself."""
    return before.total() - sum(before[name] for name in NOT_OF_DEPLOYMENT)


def attempts_before(out: Path, planned: PlannedRun) -> Counter[str]:
    """By class, those that are kept."""
    return Counter(one["class"] for one in failed_attempts(out, planned.cell.name, planned.repetition))


def keep_seen(partial: Path, kept: Path) -> None:
    """Keep what an unfinished run directory holds of an attempt."""
    # Without room on the disk the class and the message have to do.
    with contextlib.suppress(OSError, shutil.Error):
        whole = (partial / "run.json").exists()  # else it failed before anything was seen
        source, target = (partial, kept) if whole else (partial / "logs", kept / "logs")
        shutil.copytree(source, target, dirs_exist_ok=True)
