"""Standard streams that are closed, full, that nobody reads, or whose encoding is too small."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import resource
import select
import signal
import sys
from typing import TextIO

__all__ = (
    "drop_buffered",
    "end_as_sigpipe_would",
    "open_standard_streams",
    "readers_have_gone",
    "why_starved",
    "why_unwritable",
)

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FILES = (errno.EMFILE, errno.ENFILE)
_ENOUGH_FILES = 4096
_ESCAPES = "ztprobe-escapes"
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
    codecs.register_error(_ESCAPES, _as_escapes)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # it flushes first, and may be full
                stream.reconfigure(errors=_ESCAPES)


def _as_escapes(error: UnicodeError) -> tuple[str, int]:
    # JSON's own escapes: what a program reads stays JSON, and a person can still tell what it was.
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


def readers_have_gone() -> bool:
    """Whether nobody reads one of ours: a broken pipe may also be one to a process of the job."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def end_as_sigpipe_would() -> int:
    """`| head` has seen enough. What is still buffered goes nowhere, so that the exit stays quiet."""
    drop_buffered(sys.stdout, sys.stderr)
    return 128 + signal.SIGPIPE


def drop_buffered(*streams: TextIO) -> None:
    """Have what is still buffered, and can no longer be written, go nowhere.

    Or the interpreter tries once more at its exit, says so in its own words, and ends with status 120.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


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


def why_starved(error: Exception) -> str | None:
    """What to say where this process was given too little to work with; None: it was something else."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "out of memory: this machine, or a limit on this process (ulimit -v), has no more"
    if isinstance(error, OSError) and error.errno in _NO_FILES:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"too many open files: {limit} are allowed; allow more (ulimit -n {_ENOUGH_FILES}) and try again"
        )
    return None


def _refuses(descriptor: int) -> bool:
    try:
        os.write(descriptor, b"")
    except OSError:
        return True
    return False
