"""Both runs of a pair at the same time, each on cores of its own (`trace --repeat N --duet`).

What makes the whole machine slower for a while (a host that gives less of itself, heat) meets both runs of
such a pair alike and leaves their ratio as it is, where of two runs one after the other it meets one alone
(Bulej et al., Duet Benchmarking, ICPE 2020). Their rounds begin together; which half of the cores is whose
follows from the order that the plan draws. Each run is a process of its own (`run_process`) that keeps
itself, its agent and its pods on its half, and whose record of the machine is of that half: what strays onto
it from the other is foreign there and spoils the run as other processes do.

A pair is there whole or not at all. When one of its runs fails, or others used its cores, the other one is
ended or dropped, and both are made anew within what the plan allows. The runs are only published together;
a kill between the two leaves one, which the next call sets aside, because it has nothing beside it any more.
"""

from __future__ import annotations

import contextlib
import enum
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from analysis.report.wording import human_time
from analysis.results.new_run import keep_report
from analysis.results.study_files import CONTENTION
from ztprobe.cpu_numbers import cpu_words
from ztprobe.errors import RunDirError, WorkloadError, ZtprobeError
from ztprobe.experiment.spec import OwnCores
from ztprobe.process.interrupts import shielded
from ztprobe.process.own_cpus import halves, stay_on
from ztprobe.progress import Progress
from ztprobe.rundir import files
from ztprobe.runtime.deployments import appearing_whole
from ztprobe.runtime.interface import Runtime
from ztprobe.study.attempts import FAILURES, NotQuiet, attempts_before, class_of, keep_failure, may_try
from ztprobe.study.execution import Tally, keeps_offloads
from ztprobe.study.plan import PlannedRun, Study
from ztprobe.study.run_maker import RunMaker, run_name
from ztprobe.study.run_process import StudyProcess, tell

__all__ = ("DuetRun", "run_duet")

_POLL_S = 0.1


class _Told(enum.Enum):
    """What a run's process tells besides lines for people."""

    READY = enum.auto()  # everything is up and in force, and clients may start
    MEASURED = enum.auto()  # the directory is complete


@dataclass(frozen=True, kw_only=True)
class DuetRun:
    """One run of a pair (`run_process.Task`)."""

    study: Study
    planned: PlannedRun
    target: Path
    partial: Path  # an empty directory, which becomes the target
    offloads: bool
    own_cores: OwnCores
    go: Connection  # says when the other one is ready as well

    @property
    def name(self) -> str:
        """The run's, for people."""
        return run_name(self.planned)

    def carry_out(self, progress: Progress, told: Connection) -> _Told:
        """See `Task`."""
        stay_on(self.own_cores.cpus)
        progress.note(f"on {cpu_words(self.own_cores.cpus)}")
        make = RunMaker(
            self.study,
            self.planned,
            self.target,
            progress,
            self.offloads,
            None,
            own_cores=self.own_cores,
            interference=_Meeting(told, self.go),
        )
        make.measure(self.partial)
        return _Told.MEASURED


@dataclass(frozen=True)
class _Meeting:
    """An `Interference` that has the rounds of two runs begin together."""

    told: Connection
    go: Connection

    def prepare(self, runtime: Runtime) -> None:
        """See `Interference`."""

    @contextlib.contextmanager
    def during(self, runtime: Runtime) -> Iterator[None]:
        """See `Interference`."""
        tell(self.told, _Told.READY)
        while not self.go.poll(_POLL_S):
            runtime.check()
        yield


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A run of the pair that is being made."""

    number: int  # in the pair's order
    process: StudyProcess[DuetRun]
    start: Connection  # has its rounds begin


class _PairFailed(Exception):
    """What ends the attempt at both: errors by the number of the run."""

    def __init__(self, errors: Mapping[int, ZtprobeError]) -> None:
        super().__init__("; ".join(map(str, errors.values())))
        self.errors = errors


def run_duet(study: Study, repetition: int, out: Path, progress: Progress, tally: Tally) -> None:
    """Make one repetition of a study of two cells; inside `execution.open_study`.

    :raises PreflightError: the machine has fewer than two cores.
    :raises ZtprobeError: the study cannot go on (not: a run has failed).
    """
    pair = _Pair(study, repetition, out, progress, tally)
    if pair.is_there():
        tally.there += len(pair.block)
        return
    began_s, is_made = time.monotonic(), False
    while not is_made and all(may_try(study, out, one) for one in pair.block):
        is_made = pair.attempt()
    for _ in pair.block:
        tally.count(is_made)
    tally.busy_s += time.monotonic() - began_s


class _Pair:
    """Two runs that are made together."""

    def __init__(self, study: Study, repetition: int, out: Path, progress: Progress, tally: Tally) -> None:
        self.block = study.block(repetition)
        self._study, self._out, self._progress, self._tally = study, out, progress, tally
        self._targets = [out / one.directory for one in self.block]
        self._halves = halves()

    def is_there(self) -> bool:
        """Whether both are; one alone is set aside."""
        there = [number for number, path in enumerate(self._targets) if (path / "run.json").exists()]
        if len(there) == len(self.block):
            return True
        for number in there:
            what = "the other run of its pair is not there: an earlier call was killed as it kept them"
            self._keep({number: NotQuiet(what)}, self._targets, 0.0)
            files.remove_tree(self._targets[number])
        return False

    def attempt(self) -> bool:
        """Make both. :returns: whether they are there now."""
        before = [attempts_before(self._out, one) for one in self.block]
        self._announce(max(one.total() for one in before))
        may_repeat = max(one[CONTENTION] for one in before) < self._study.contention_retries
        self._tally.attempts += len(self.block)
        began_s = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                partials = [stack.enter_context(appearing_whole(path)) for path in self._targets]
                try:
                    with self._processes(partials) as sides:
                        _await_all(sides, self._progress)
                    self._judge(partials, may_repeat)
                except _PairFailed as failed:
                    self._keep(failed.errors, partials, time.monotonic() - began_s)
                    raise
        except _PairFailed:
            return False
        except RunDirError as error:  # one cannot be put in its place
            for path in self._targets:
                if (path / "run.json").exists():  # the other one has been
                    files.remove_tree(path)
            self._keep({0: error}, None, time.monotonic() - began_s)
            return False
        return True

    def _announce(self, attempts: int) -> None:
        tally = self._tally
        number = tally.there + tally.tried + 1
        both = " and ".join(map(run_name, self.block))
        again = f", attempt {attempts + 1}" if attempts else ""
        left = "" if tally.left_s is None else f", about {human_time(tally.left_s)} left"
        self._progress.note(f"{number} and {number + 1} of {tally.planned}, at once: {both}{again}{left}")

    @contextlib.contextmanager
    def _processes(self, partials: Sequence[Path]) -> Iterator[list[_Side]]:
        """Whatever ends the body ends the runs' processes, and waits for their clean-up."""
        sides: list[_Side] = []
        try:
            for number, partial in enumerate(partials):
                with shielded():  # one that has begun is known, whatever comes
                    sides.append(self._begin(number, partial))
            yield sides
        finally:
            with shielded():
                for side in sides:
                    side.process.give_up()
                for side in sides:
                    side.process.await_end()
                    side.start.close()

    def _begin(self, number: int, partial: Path) -> _Side:
        go, start = Pipe(duplex=False)
        own_cores = OwnCores(
            cpus=self._halves[number],
            of=os.cpu_count() or 1,
            beside=self.block[1 - number].cell.experiment.name,
        )
        task = DuetRun(
            study=self._study,
            planned=self.block[number],
            target=self._targets[number],
            partial=partial,
            offloads=keeps_offloads(self._study),
            own_cores=own_cores,
            go=go,
        )
        try:
            return _Side(number=number, process=StudyProcess(task), start=start)
        finally:
            go.close()  # the process has its own

    def _judge(self, partials: Sequence[Path], may_repeat: bool) -> None:
        """:raises _PairFailed: one cannot be analysed, or others used its cores and it is to be made anew."""
        errors: dict[int, ZtprobeError] = {}
        for number, partial in enumerate(partials):
            try:
                why = keep_report(partial)
            except RunDirError as error:
                raise _PairFailed({number: error}) from error
            if why is not None:
                errors[number] = NotQuiet(f"while its rounds ran, {why}")
        if errors and may_repeat:
            raise _PairFailed(
                {number: NotQuiet(f"{spoiled}; its pair is made anew") for number, spoiled in errors.items()}
            )
        for number, spoiled in errors.items():
            name = run_name(self.block[number])
            self._progress.note(
                f"{name}: {CONTENTION}: {spoiled}; it stays, and its pair is left out of what is said"
            )

    def _keep(self, errors: Mapping[int, ZtprobeError], seen: Sequence[Path] | None, took_s: float) -> None:
        for number, error in errors.items():
            planned, found = self.block[number], class_of(error)
            where = None if seen is None else seen[number]
            message = keep_failure(self._out, planned, found, str(error), took_s, where)
            self._progress.note(f"{run_name(planned)}: {found}: {message}")


def _await_all(sides: Sequence[_Side], progress: Progress) -> None:
    """Hear both until they are through, and have their rounds begin when both are ready.

    :raises _PairFailed: one is not.
    """
    left = {side.process.told: side for side in sides}
    ready = 0
    while left:
        for told in wait(list(left)):
            side = next(one for one in sides if one.process.told is told)
            name = side.process.task.name
            try:
                said = side.process.hear()
            except tuple(FAILURES) as error:
                raise _PairFailed({side.number: error}) from error
            if isinstance(said, str):
                progress.note(f"{name}: {said.strip()}")
            elif said is _Told.READY:
                ready += 1
                for one in sides if ready == len(sides) else ():
                    with contextlib.suppress(OSError):  # it has ended, which is heard next
                        one.start.send(None)
            elif said is _Told.MEASURED:
                side.process.await_end()
                del left[side.process.told]
            else:
                raise _PairFailed({side.number: WorkloadError(side.process.await_end())})
