"""Run a study: what is missing, in the plan's order, every attempt kept, nothing done twice.

A study's directory holds ``study.json`` (the plan), ``runs/CELL/rNN`` (complete run directories: one
appears whole or not at all) and ``attempts/CELL-rNN-N`` (what failed: its class, its message, and what was
seen of it until then, for `ztprobe diagnose`). A run during which the machine was not quiet counts as such
an attempt, of the class ``contention``, and is made anew, twice at most unless the plan says otherwise: after
that it stays, and the study's report counts it and leaves it out of what it says of times.
What is there decides what is left to do, so an interrupted study goes on where it was; a plan that has
changed meanwhile is refused, and so is another runtime than the one it was begun with.

On a cluster (`on_cluster`) there is one more thing that spoils a run: the API does not answer any more, or
refuses what it had let pass. Such an attempt is of the class ``cluster`` and is made anew as well; the second
one in a row ends the study, and so does one before any run has come through: then it is no passing trouble.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.report.wording import human_time, plural
from analysis.results.new_run import keep_report
from analysis.results.study_files import (
    CLUSTER,
    CONTENTION,
    STUDY_FILE,
    runtime_of,
)
from ztprobe.documents.files import read_bytes, read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import PreflightError, RunDirError, ZtprobeError
from ztprobe.profile.model import load_profile
from ztprobe.progress import Progress
from ztprobe.rundir.claim import claimed, holds_results
from ztprobe.rundir.store import dump_json, write_atomically
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.deployments import appearing_whole
from ztprobe.study.attempts import (
    FAILURES,
    NotQuiet,
    attempts_before,
    class_of,
    keep_seen,
    may_try,
    place_of,
    write_failure,
)
from ztprobe.study.cluster_runs import ClusterRuns
from ztprobe.study.plan import Study
from ztprobe.study.run_maker import RunMaker

__all__ = (
    "STUDY_FILE",
    "Tally",
    "keeps_offloads",
    "leave",
    "open_plan",
    "open_study",
    "refuse_other_runtime",
    "run_block",
    "run_one",
    "run_study",
)

_MOST_BYTES = 16 << 20  # of study.json


@dataclass
class Tally:
    """How far a study is."""

    planned: int
    there: int = 0  # from an earlier call
    done: int = 0
    failed: int = 0  # runs without a successful attempt
    attempts: int = 0
    busy_s: float = 0.0  # of all runs together
    at_once: int = 1
    is_cluster_away: bool = False  # the latest attempt was of the class ``cluster``

    @property
    def tried(self) -> int:
        """Runs that this call is through with."""
        return self.done + self.failed

    @property
    def left_s(self) -> float | None:
        """At the pace so far; None: nothing has been run yet."""
        left = self.planned - self.there - self.tried
        return None if not self.tried else self.busy_s / self.tried * left / min(self.at_once, max(left, 1))

    def count(self, is_there: bool) -> None:
        """A run more that is through."""
        if is_there:
            self.done += 1
        else:
            self.failed += 1


def open_study(study: Study, out: Path) -> contextlib.AbstractContextManager[None]:
    """Make the directory, or make sure that it is this study's, and keep others out of it.

    :raises RunDirError: it holds something else, cannot be written, or another ztprobe is at it.
    """
    refuse_other_runtime(out, study.runtime)
    return open_plan(out, STUDY_FILE, dump_json(study.as_dict()), "study")


def refuse_other_runtime(out: Path, runtime: str) -> None:
    """:raises RunDirError: the study that is there has runs of another one."""
    there = None
    with contextlib.suppress(DocumentError):  # there is none; or `open_plan` says what is wrong with it
        plan = parse_json(read_text(out / STUDY_FILE, _MOST_BYTES))
        there = runtime_of(plan) if isinstance(plan, dict) else None
    if there is not None and there != runtime:
        raise RunDirError(
            f"{out}: holds a study of --runtime {there}, and times of two runtimes do not go together: give"
            f" --runtime {there} to go on with it, or choose another --out"
        )


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


def run_study(study: Study, out: Path, progress: Progress, place: ClusterPlace | None = None) -> Tally:
    """Run what is missing.

    :param place: on which cluster, of a study that is `on_cluster.prepared`; None: on this machine.
    :raises ZtprobeError: the machine cannot go on (not: a run has failed).
    """
    tally = Tally(planned=len(study.cells) * study.repetitions)
    cluster = None if place is None else ClusterRuns(out, place)
    with open_study(study, out):
        for repetition in range(1, study.repetitions + 1):
            run_block(study, repetition, out, progress, tally, cluster)
        if cluster is not None:
            leave(cluster, progress)
    return tally


def leave(cluster: ClusterRuns, progress: Progress) -> None:
    """Have nothing of a study on its cluster once its runs are there."""
    try:
        cluster.remove_left(progress)
    except PreflightError as error:  # all runs are there, and worth their report
        progress.note(f"{error}; what may be left on the cluster goes when the sweep is started again")


def run_block(
    study: Study,
    repetition: int,
    out: Path,
    progress: Progress,
    tally: Tally,
    cluster: ClusterRuns | None = None,
) -> None:
    """One repetition of every cell; inside `open_study`."""
    offloads = keeps_offloads(study)
    for planned in study.block(repetition):
        target = out / planned.directory
        if (target / "run.json").exists():
            tally.there += 1
            continue
        began_s = time.monotonic()
        make = RunMaker(study, planned, target, progress, offloads, cluster)
        tally.count(run_one(make, out, tally, tally.there + tally.tried + 1))
        tally.busy_s += time.monotonic() - began_s


def keeps_offloads(study: Study) -> bool:
    """All runs see packets of the same size, or the offloads would pass for the profile's cost."""
    return not any(load_profile(cell.experiment.profile).per_packet for cell in study.cells)


def run_one(make: RunMaker, out: Path, tally: Tally, number: int) -> bool:
    """Make a run, in as many attempts as the plan allows.

    :param tally: how far the study is; attempts are counted there.
    :param number: of the run among the study's, for people.
    :returns: whether it is there now.
    :raises ZtprobeError: the study cannot go on.
    """
    name, study, progress = make.name, make.study, make.progress
    while may_try(study, out, make.planned):
        before = attempts_before(out, make.planned)
        again = f", attempt {before.total() + 1}" if before else ""
        left = "" if tally.left_s is None else f", about {human_time(tally.left_s)} left"
        progress.note(f"{number} of {tally.planned}: {name}{again}{left}")
        tally.attempts += 1
        kept = place_of(out, make.planned, before)
        began_s = time.monotonic()
        classes = _classes(make, tally)
        tally.is_cluster_away = False
        try:
            with appearing_whole(make.target) as partial:
                try:
                    make.measure(partial)
                    why = keep_report(partial)
                    if why is not None and before[CONTENTION] < study.contention_retries:
                        raise NotQuiet(f"while its rounds ran, {why}; it is made anew")
                except tuple(classes) as error:
                    keep_seen(partial, kept)
                    error.args = (str(error).replace(str(partial), str(kept)),)  # its class may want more
                    raise
        except tuple(classes) as error:
            found = class_of(error, classes)
            tally.is_cluster_away = found == CLUSTER
            progress.note(f"{name}: {found}: {error}")
            write_failure(kept, found, str(error), time.monotonic() - began_s)
        else:
            if why is not None:
                progress.note(
                    f"{name}: {CONTENTION}: while its rounds ran, {why}; it stays, after"
                    f" {plural(before[CONTENTION], 'repetition')}, and is left out of what is said of times"
                )
            return True
    return False


def _classes(make: RunMaker, tally: Tally) -> dict[type[ZtprobeError], str]:
    """What ends this attempt alone, and not the study."""
    has_worked = make.on_cluster is not None and tally.done and not tally.is_cluster_away
    return {**FAILURES, PreflightError: CLUSTER} if has_worked else FAILURES
