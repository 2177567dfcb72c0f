"""A directory that one command fills over several calls, such as a study's: one command at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ztprobe.errors import RunDirError
from ztprobe.rundir import files

__all__ = ("LOCK", "claimed", "holds_results")

LOCK = ".lock"


def holds_results(path: Path) -> bool:
    """Whether anything but the lock is there. :raises RunDirError: it cannot be looked at."""
    try:
        return path.exists() and any(entry.name != LOCK for entry in path.iterdir())
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read: {error.strerror}; choose another --out") from error


@contextlib.contextmanager
def claimed(path: Path, what: str) -> Iterator[None]:
    """Make the directory where it is missing, and keep other commands out of it during the body.

    :param what: another command does there, for the message: ``is running this study``.
    :raises RunDirError: it cannot be made, somebody else could replace what is in it, or another is at it.
    """
    try:
        with files.opened_directory(path, make=0o777) as directory:
            held = files.open_lock(LOCK, directory)
    except OSError as error:
        raise RunDirError(f"{path}: cannot be made: {error.strerror}; choose another --out") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirError(f"{path}: another ztprobe {what}; wait for it") from error
        yield
    finally:
        os.close(held)
