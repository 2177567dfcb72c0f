"""One run of a study in a process of its own, so that several nodes have one each at the same time.

A run is brought up, watched and taken away as everywhere, by the one main thread that a signal interrupts.
What it has to say goes to the study's process line by line; a signal to that one ends this one too, after it
has removed what it made, and so does its end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from ztprobe.errors import ZtprobeError
from ztprobe.process.interrupts import Interrupted, catching
from ztprobe.process.lifeline import signalled_at_end_of
from ztprobe.progress import PlainProgress
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.study.cluster_runs import ClusterRuns
from ztprobe.study.execution import Tally, leave, run_one
from ztprobe.study.nodes_of_study import await_free
from ztprobe.study.plan import PlannedRun, Study
from ztprobe.study.run_maker import RunMaker, run_name

__all__ = ("Ended", "RunTask", "StudyProcess")

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@dataclass(frozen=True, kw_only=True)
class RunTask:
    """Which run is to be made, where, and how far its study is."""

    study: Study
    planned: PlannedRun
    out: Path  # the study's directory
    place: ClusterPlace
    offloads: bool
    tally: Tally
    number: int  # of the run among the study's


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What came of it."""

    is_there: bool
    attempts: int
    is_cluster_away: bool


class StudyProcess:
    """A run that is being made.

    :param task: begins at once.
    """

    def __init__(self, task: RunTask) -> None:
        self.task = task
        self.told, theirs = multiprocessing.Pipe(duplex=False)
        # Not forked: threads and connections of this process would be half there.
        self._process: BaseProcess = multiprocessing.get_context("spawn").Process(
            target=_make, args=(task, theirs, os.getpid()), name=run_name(task.planned)
        )
        # Until it hears signals in its own way it gets none.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    @property
    def node(self) -> str:
        """On which it is made."""
        return str(self.task.place.node)

    def hear(self) -> str | Ended | None:
        """The next line that it says, or what came of it; None: it has ended without a word.

        :raises Exception: what ended it, and with it the study.
        """
        try:
            said = self.told.recv()
        except (EOFError, ConnectionResetError):
            return None
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, Ended) else str(said)

    @property
    def name(self) -> str:
        """The run's, for people."""
        return run_name(self.task.planned)

    def give_up(self) -> None:
        """Have it end, after it has removed what it made; nobody hears it any more."""
        self.told.close()  # else it would wait for somebody who does
        self._process.terminate()

    def await_end(self) -> int | None:
        """:returns: its exit status; negative: the signal that ended it."""
        self._process.join()
        return self._process.exitcode


class _Told(PlainProgress):
    """Progress whose lines go to the study's process."""

    def __init__(self, told: Connection) -> None:
        super().__init__(sys.stderr)
        self._told = told

    def _write(self, text: str) -> None:
        _tell(self._told, text)


def _tell(told: Connection, what: object) -> None:
    with suppress(OSError):  # nobody hears it any more, and a clean-up goes on nevertheless
        told.send(what)


def _make(task: RunTask, told: Connection, parent: int) -> None:
    """The process's own."""
    os.setpgrp()  # Ctrl-C is for the study's process, which ends this one
    if not signalled_at_end_of(parent, signal.SIGTERM):
        return
    try:
        with catching(lambda _notice: None):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            _tell(told, _ended(task, told))
    except Interrupted as interrupt:
        sys.exit(interrupt.exit_code)
    except Exception as error:
        _tell(told, _portable(error))


def _portable(error: Exception) -> Exception:
    """What it says, as an exception that another process can make again."""
    if isinstance(error, ZtprobeError):
        kind = next(one for one in type(error).__mro__ if one.__module__ == ZtprobeError.__module__)
        same: Exception = kind(str(error))
        return same
    bug = RuntimeError(f"{type(error).__name__}: {error}")
    bug.add_note("".join(traceback.format_exception(error)))
    return bug


def _ended(task: RunTask, told: Connection) -> Ended:
    tally = replace(task.tally, attempts=0)
    with _Told(told) as progress:
        runs = ClusterRuns(task.out, task.place)
        target = task.out / task.planned.directory
        make = RunMaker(task.study, task.planned, target, progress, task.offloads, runs)
        if task.place.agents is not None:
            await_free(task.place.agents, progress)
        is_there = run_one(make, task.out, tally, task.number)
        leave(runs, progress)
    return Ended(is_there=is_there, attempts=tally.attempts, is_cluster_away=tally.is_cluster_away)
