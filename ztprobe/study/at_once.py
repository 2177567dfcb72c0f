"""A study's runs on several nodes at once, in the plan's order: the next run is made on the first free node.

Which node makes which run follows from when nodes become free, and not from the plan; the study's report
names the nodes. Each run is a process of its own (`run_process`). One that ends without a word (killed, out
of memory) is a failed attempt; an error that concerns all runs ends the study, and the others with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from ztprobe.process.interrupts import shielded
from ztprobe.progress import Progress
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.study.attempts import keep_failure, may_try
from ztprobe.study.cluster_runs import ClusterRuns
from ztprobe.study.execution import Tally, keeps_offloads, leave, open_study, run_one
from ztprobe.study.nodes_of_study import await_free
from ztprobe.study.plan import PlannedRun, Study
from ztprobe.study.run_maker import RunMaker, run_name
from ztprobe.study.run_process import StudyProcess

__all__ = ("Ended", "NodeRun", "run_at_once")

_PATIENCE_S = 120.0  # with an earlier call's runs, which end when it does
_WORKLOAD = "workload"


def run_at_once(study: Study, places: Sequence[ClusterPlace], out: Path, progress: Progress) -> Tally:
    """Run what is missing, on as many nodes at once as there are.

    :param places: one on each node (`nodes_of_study.places_of`).
    :raises ZtprobeError: the study cannot go on (not: a run has failed).
    """
    tally = Tally(planned=len(study.cells) * study.repetitions, at_once=len(places))
    everywhere = ClusterRuns(out, dataclasses.replace(places[0], node=None))
    with open_study(study, out):
        everywhere.remove_left(progress, _PATIENCE_S)
        missing = [one for one in study.runs() if not (out / one.directory / "run.json").exists()]
        tally.there = tally.planned - len(missing)
        with _Nodes(study, places, out, progress, tally).open(missing) as nodes:
            while nodes.are_at_work():
                nodes.hear()
        leave(everywhere, progress)
    return tally


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What came of a run."""

    is_there: bool
    attempts: int
    is_cluster_away: bool


@dataclass(frozen=True, kw_only=True)
class NodeRun:
    """Which run is to be made, on which node, and how far its study is (`run_process.Task`)."""

    study: Study
    planned: PlannedRun
    out: Path  # the study's directory
    place: ClusterPlace
    offloads: bool
    tally: Tally
    number: int  # of the run among the study's

    @property
    def name(self) -> str:
        """The run's, for people."""
        return run_name(self.planned)

    def carry_out(self, progress: Progress, _told: Connection) -> Ended:
        """See `Task`."""
        tally = dataclasses.replace(self.tally, attempts=0)
        runs = ClusterRuns(self.out, self.place)
        target = self.out / self.planned.directory
        make = RunMaker(self.study, self.planned, target, progress, self.offloads, runs)
        if self.place.agents is not None:
            await_free(self.place.agents, progress)
        is_there = run_one(make, self.out, tally, self.number)
        leave(runs, progress)
        return Ended(is_there=is_there, attempts=tally.attempts, is_cluster_away=tally.is_cluster_away)


class _Nodes:
    """Which node makes which run."""

    def __init__(
        self, study: Study, places: Sequence[ClusterPlace], out: Path, progress: Progress, tally: Tally
    ) -> None:
        self._free = deque(places)
        self._missing: deque[tuple[int, PlannedRun]] = deque()  # with their numbers, for people
        self._busy: dict[StudyProcess[NodeRun], float] = {}  # since when
        self._study, self._out, self._progress, self._tally = study, out, progress, tally
        self._offloads = keeps_offloads(study)

    @contextlib.contextmanager
    def open(self, missing: Iterable[PlannedRun]) -> Iterator[_Nodes]:
        """Whatever ends the body ends the runs that are being made then, and waits for their clean-up."""
        self._missing.extend(enumerate(missing, self._tally.there + 1))
        try:
            yield self
        finally:
            with shielded():
                for one in self._busy:
                    one.give_up()
                for one in self._busy:
                    one.await_end()

    def are_at_work(self) -> bool:
        """Have every free node make a run, as long as there are some. :returns: whether one does."""
        while self._missing and self._free:
            number, planned = self._missing.popleft()
            task = NodeRun(
                study=self._study,
                planned=planned,
                out=self._out,
                place=self._free.popleft(),
                offloads=self._offloads,
                tally=dataclasses.replace(self._tally),
                number=number,
            )
            with shielded():  # one that has begun is known, whatever comes
                self._busy[StudyProcess(task)] = time.monotonic()
        return bool(self._busy)

    def hear(self) -> None:
        """Wait until one of those that are at work says something, and see to what it is."""
        ready = wait([one.told for one in self._busy])
        for one in [one for one in self._busy if one.told in ready]:
            said = one.hear()
            if isinstance(said, str):
                self._progress.note(f"{one.task.place.node}: {said.strip()}")
            else:
                self._take(one, said)

    def _take(self, one: StudyProcess[NodeRun], ended: Ended | None) -> None:
        what = one.await_end()
        took_s = time.monotonic() - self._busy.pop(one)
        self._free.append(one.task.place)
        self._tally.busy_s += took_s
        if ended is not None:
            self._tally.attempts += ended.attempts
            self._tally.is_cluster_away = ended.is_cluster_away
            self._tally.count(ended.is_there)
            return
        planned = one.task.planned
        self._progress.note(f"{one.task.place.node}: {one.task.name}: {_WORKLOAD}: {what}")
        keep_failure(self._out, planned, _WORKLOAD, what, took_s)
        self._tally.attempts += 1
        if may_try(self._study, self._out, planned):
            self._missing.appendleft((one.task.number, planned))
        else:
            self._tally.count(False)
