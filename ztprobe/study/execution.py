"""Run a study: what is missing, in the plan's order, every attempt kept, nothing done twice.

A study's directory holds ``study.json`` (the plan), ``runs/CELL/rNN`` (complete run directories: one
appears whole or not at all) and ``attempts/CELL-rNN-N`` (what failed: its class, its message, and what was
seen of it until then, for `ztprobe diagnose`). A run during which the machine was not quiet counts as such
an attempt, of the class ``contention``, and is made anew, twice at most unless the plan says otherwise: after
that it stays, and the study's report counts it and leaves it out of what it says of times.
What is there decides what is left to do, so an interrupted study goes on where it was; a plan that has
changed meanwhile is refused.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.causes.diagnosis import top_cause
from analysis.report.wording import human_time, plural
from analysis.results.new_run import keep_report
from analysis.results.study_files import CONDITIONS_FILE, CONTENTION, STUDY_FILE, failed_attempts
from ztprobe.documents.files import read_bytes
from ztprobe.documents.problem import DocumentError
from ztprobe.errors import EnforcementError, RunDirError, WorkloadError, ZtprobeError
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import Job
from ztprobe.experiment.spec import spec_of
from ztprobe.profile.model import load_profile
from ztprobe.progress import Progress
from ztprobe.rundir.claim import claimed, holds_results
from ztprobe.rundir.store import create_run_dir, dump_json, write_atomically
from ztprobe.runtime.deployments import appearing_whole, clean_leftovers
from ztprobe.study.plan import PlannedRun, Study
from ztprobe.study.reset import machine_state

__all__ = ("STUDY_FILE", "Tally", "open_plan", "open_study", "run_block", "run_study")

_MOST_BYTES = 16 << 20  # of study.json


class _NotQuiet(ZtprobeError):
    """Others used the machine while the rounds ran."""


# What makes an attempt a failed one. Anything else ends the study: the machine lacks something, a bug.
_CLASSES: dict[type[ZtprobeError], str] = {
    EnforcementError: "not in force",
    WorkloadError: "workload",
    RunDirError: "storage",
    _NotQuiet: CONTENTION,
}
_LIMIT_S = (180, 60)  # a run may take this long, and this long a round


@dataclass
class Tally:
    """How far a study is."""

    planned: int
    there: int = 0  # from an earlier call
    done: int = 0
    failed: int = 0  # runs without a successful attempt
    attempts: int = 0
    busy_s: float = 0.0

    @property
    def left_s(self) -> float | None:
        """At the pace so far; None: nothing has been run yet."""
        tried = self.done + self.failed
        return None if not tried else self.busy_s / tried * (self.planned - self.there - tried)


def open_study(study: Study, out: Path) -> contextlib.AbstractContextManager[None]:
    """Make the directory, or make sure that it is this study's, and keep others out of it.

    :raises RunDirError: it holds something else, cannot be written, or another ztprobe is at it.
    """
    return open_plan(out, STUDY_FILE, dump_json(study.as_dict()), "study")


@contextlib.contextmanager
def open_plan(out: Path, name: str, plan: bytes, noun: str) -> Iterator[None]:
    """A directory that belongs to one plan, kept in a file of it.

    :param noun: what is planned, for messages.
    :raises RunDirError: as `open_study`.
    """
    file = out / name
    if not file.exists() and holds_results(out):
        raise RunDirError(f"{out}: is not empty and no {noun}; choose another --out")
    with claimed(out, f"is running this {noun}"):
        if not file.exists():
            write_atomically(file, plan)
        elif _plan_there(file) != plan:
            raise RunDirError(f"{out}: holds a {noun} of another plan; choose another --out")
        yield


def _plan_there(file: Path) -> bytes:
    try:
        return read_bytes(file, _MOST_BYTES)
    except DocumentError as error:
        raise RunDirError(f"{error.at(file)}; choose another --out") from error


def run_study(study: Study, out: Path, progress: Progress) -> Tally:
    """Run what is missing.

    :raises ZtprobeError: the machine cannot go on (not: a run has failed).
    """
    tally = Tally(planned=len(study.cells) * study.repetitions)
    with open_study(study, out):
        for repetition in range(1, study.repetitions + 1):
            run_block(study, repetition, out, progress, tally)
    return tally


def run_block(study: Study, repetition: int, out: Path, progress: Progress, tally: Tally) -> None:
    """One repetition of every cell; inside `open_study`."""
    # All runs see packets of the same size, or the offloads would pass for the profile's cost.
    offloads = not any(load_profile(cell.experiment.profile).per_packet for cell in study.cells)
    for planned in study.block(repetition):
        target = out / planned.directory
        if (target / "run.json").exists():
            tally.there += 1
            continue
        began_s = time.monotonic()
        if _run_one(study, planned, target, out, progress, tally, offloads=offloads):
            tally.done += 1
        else:
            tally.failed += 1
        tally.busy_s += time.monotonic() - began_s


def _run_one(
    study: Study,
    planned: PlannedRun,
    target: Path,
    out: Path,
    progress: Progress,
    tally: Tally,
    *,
    offloads: bool,
) -> bool:
    number = tally.there + tally.done + tally.failed + 1
    name = f"{planned.cell.name}-r{planned.repetition:02d}"
    while (before := _attempts_before(out, planned)).total() - before[CONTENTION] <= study.retries:
        again = f", attempt {before.total() + 1}" if before else ""
        left = "" if tally.left_s is None else f", about {human_time(tally.left_s)} left"
        progress.note(f"{number} of {tally.planned}: {name}{again}{left}")
        tally.attempts += 1
        kept = out / "attempts" / f"{name}-{before.total() + 1}"
        began_s = time.monotonic()
        try:
            with appearing_whole(target) as partial:
                try:
                    _measure(study, planned, partial, target, progress, offloads=offloads)
                    why = keep_report(partial)
                    if why is not None and before[CONTENTION] < study.contention_retries:
                        raise _NotQuiet(f"while its rounds ran, {why}; it is made anew")
                except tuple(_CLASSES) as error:
                    _keep_failed(partial, kept)
                    error.args = (str(error).replace(str(partial), str(kept)),)  # its class may want more
                    raise
        except tuple(_CLASSES) as error:
            found = next(name for kind, name in _CLASSES.items() if isinstance(error, kind))
            progress.note(f"{name}: {found}: {error}")
            failure = {
                "class": found,
                "cause": top_cause(kept),
                "message": str(error),
                "took_s": time.monotonic() - began_s,
            }
            write_atomically(kept / "failure.json", dump_json(failure))
        else:
            if why is not None:
                progress.note(
                    f"{name}: {CONTENTION}: while its rounds ran, {why}; it stays, after"
                    f" {plural(before[CONTENTION], 'repetition')}, and is left out of what is said of times"
                )
            return True
    return False


def _measure(
    study: Study, planned: PlannedRun, partial: Path, target: Path, progress: Progress, *, offloads: bool
) -> None:
    for line in clean_leftovers():
        progress.note(f"left by an interrupted run: {line}")
    before = machine_state()
    cell = planned.cell
    request = TraceRequest(
        experiment=cell.experiment,
        baseline=None,
        rounds=study.rounds,
        clients=cell.clients,
        dataset=study.dataset,
        data_dir=study.data_dir,
        out=target,
        reconnect=cell.reconnect,
        level_switch=cell.level_switch,
        fl=dict(cell.fl),
    )
    directory = create_run_dir(partial, shown=target)
    base_s, round_s = _LIMIT_S
    spec = spec_of(
        request,
        offloads=offloads,
        limit_s=base_s + round_s * study.rounds,
        congestion_control=cell.congestion_control,
    )
    Job(spec, directory, progress).run()
    directory.write_json(CONDITIONS_FILE, before)


def _attempts_before(out: Path, planned: PlannedRun) -> Counter[str]:
    """By class, those that are kept."""
    return Counter(one["class"] for one in failed_attempts(out, planned.cell.name, planned.repetition))


def _keep_failed(partial: Path, kept: Path) -> None:
    # Without room on the disk the class and the message have to do.
    with contextlib.suppress(OSError, shutil.Error):
        whole = (partial / "run.json").exists()  # else it failed before anything was seen
        source, target = (partial, kept) if whole else (partial / "logs", kept / "logs")
        shutil.copytree(source, target, dirs_exist_ok=True)
