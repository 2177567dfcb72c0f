"""One run of a study in a process of its own, so that several are made at the same time.

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
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from ztprobe.errors import ZtprobeError
from ztprobe.process.interrupts import Interrupted, catching
from ztprobe.process.lifeline import signalled_at_end_of
from ztprobe.progress import PlainProgress, Progress

__all__ = ("StudyProcess", "Task", "tell")

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Task(Protocol):
    """What the process does; it is sent there."""

    @property
    def name(self) -> str:
        """Of the process."""
        ...

    def carry_out(self, progress: Progress, told: Connection) -> object:
        """Do it.

        :param told: takes what else is to be heard on the way (`tell`); strings are lines for people.
        :returns: is heard last; no string.
        """
        ...


TaskT = TypeVar("TaskT", bound=Task)


class StudyProcess(Generic[TaskT]):
    """A run that is being made.

    :param task: begins at once.
    """

    def __init__(self, task: TaskT) -> None:
        self.task = task
        self.told, theirs = multiprocessing.Pipe(duplex=False)
        # Not forked: threads and connections of this process would be half there.
        self._process: BaseProcess = multiprocessing.get_context("spawn").Process(
            target=_make, args=(task, theirs, os.getpid()), name=task.name
        )
        # Until it hears signals in its own way it gets none.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def hear(self) -> Any:
        """A line for people, or what else it has to tell; None: it has ended without a word.

        :raises Exception: what ended it.
        """
        try:
            said = self.told.recv()
        except (EOFError, ConnectionResetError):
            return None
        if isinstance(said, Exception):
            raise said
        return said

    def give_up(self) -> None:
        """Have it end, after it has removed what it made; nobody hears it any more."""
        self.told.close()  # else it would wait for somebody who does
        self._process.terminate()

    def await_end(self) -> str:
        """:returns: for where it has ended without a word: that it has, and by what signal or status."""
        self._process.join()
        status = self._process.exitcode or 0
        how = signal.Signals(-status).name if status < 0 else f"status {status}" if status else ""
        return f"the process that made it has ended before it was through{f' ({how})' if how else ''}"


class _Told(PlainProgress):
    """Progress whose lines go to the study's process."""

    def __init__(self, told: Connection) -> None:
        super().__init__(sys.stderr)
        self._told = told

    def _write(self, text: str) -> None:
        tell(self._told, text)


def tell(told: Connection, what: object) -> None:
    """Send it to whoever hears this process."""
    with suppress(OSError):  # nobody hears it any more, and a clean-up goes on nevertheless
        told.send(what)


def _make(task: Task, told: Connection, parent: int) -> None:
    """The process's own."""
    os.setpgrp()  # Ctrl-C is for the study's process, which ends this one
    if not signalled_at_end_of(parent, signal.SIGTERM):
        return
    try:
        with catching(lambda _notice: None):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            with _Told(told) as progress:
                tell(told, task.carry_out(progress, told))
    except Interrupted as interrupt:
        sys.exit(interrupt.exit_code)
    except Exception as error:
        tell(told, _portable(error))


def _portable(error: Exception) -> Exception:
    """What it says, as an exception that another process can make again."""
    if isinstance(error, ZtprobeError):
        kind = next(one for one in type(error).__mro__ if one.__module__ == ZtprobeError.__module__)
        same: Exception = kind(str(error))
        return same
    bug = RuntimeError(f"{type(error).__name__}: {error}")
    bug.add_note("".join(traceback.format_exception(error)))
    return bug
