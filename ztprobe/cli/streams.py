"""Standard streams that are closed, full, or that nobody reads."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys

__all__ = ("end_as_sigpipe_would", "open_standard_streams", "readers_have_gone", "why_unwritable")

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSES = (errno.EBADF, errno.EIO)  # open for reading alone; a terminal that is gone


def open_standard_streams() -> None:
    """Give what was started with a stream closed (``>&-``) a null device in its place.

    Or the next file that anybody opens gets its number, and with it what C libraries and children print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):  # always the lowest that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def readers_have_gone() -> bool:
    """Whether nobody reads one of ours: a broken pipe may also be one to a process of the job."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def end_as_sigpipe_would() -> int:
    """`| head` has seen enough. What is still buffered goes nowhere, so that the exit stays quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return 128 + signal.SIGPIPE


def why_unwritable(error: Exception) -> str | None:
    """What to say of a file or stream that took no more; None: it was something else."""
    if not isinstance(error, OSError):
        return None
    where = error.filename or "output"
    if error.errno in _IS_FULL:
        return f"{where}: cannot be written: {error.strerror}; make room and try again"
    if error.errno in _REFUSES and not error.filename and _refuses(sys.stdout.fileno()):
        return f"{where}: cannot be written: {error.strerror}"
    return None


def _refuses(descriptor: int) -> bool:
    try:
        os.write(descriptor, b"")
    except OSError:
        return True
    return False
