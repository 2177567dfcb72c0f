"""The state directory, ``/run/ztprobe``: who may see it, and the lock on what runs share.

Only root can read it, and the lock is a file in there that only root can open: a lock that anybody
can take lets anybody stop us. Whoever waits for it waits no longer than a time limit, and is told who
holds it. The last one to leave removes the lock and the directory while it holds the lock; who then
gets the lock of a file that is gone tries again with the one that has taken its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ztprobe import paths
from ztprobe.errors import PreflightError
from ztprobe.rundir import files

__all__ = ("LOCK", "LOCK_WAIT_S", "leave", "locked", "make", "telling", "trusted")

LOCK = ".lock"
LOCK_WAIT_S = 30.0  # cleaning up after a killed run takes a few seconds

_POLL_S = 0.02
_SILENT_S = 2.0
_TRIES = 1000  # each takes some microseconds


_tell: Callable[[str], None] | None = None


@contextlib.contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Have whoever waits for the lock for more than 2 s during the body say so, with one line."""
    global _tell
    before, _tell = _tell, tell
    try:
        yield
    finally:
        _tell = before


def trusted() -> bool:
    """Whether there is a state directory. What is read in it is acted on, so it has to be our own.

    :raises PreflightError: it is somebody else's.
    """
    try:
        files.checked(paths.STATE_DIR)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PreflightError(f"state directory {paths.STATE_DIR}: {error.strerror}") from error
    return True


def make(*parts: str) -> Path:
    """Make a directory of that name in the state directory, for root alone, and return it.

    :raises FileExistsError: it is there.
    :raises OSError: it cannot be made.
    :raises PreflightError: see `locked`.
    """
    with locked():
        path = paths.STATE_DIR.joinpath(*parts)
        files.make_directory(path, 0o700, parents=True)
    return path


@contextlib.contextmanager
def locked(wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the machine-wide lock on what runs share (claiming, cleaning, machine-wide settings).

    :raises PreflightError: somebody else holds it all the time, or it cannot be made.
    """
    try:
        descriptor = _take(time.monotonic() + wait_s)
    except OSError as error:
        raise PreflightError(f"state directory {paths.STATE_DIR}: {error.strerror}") from error
    if descriptor is None:
        raise PreflightError(
            f"{paths.STATE_DIR / LOCK} has been held for {wait_s:g} s by {_holder()}: wait for it or end it, "
            "and try again"
        )
    try:
        yield
    finally:
        os.close(descriptor)


def leave() -> None:
    """Remove the state directory if nothing is in it any more; no error if that cannot be done now."""
    with contextlib.suppress(OSError):
        descriptor = _take(0.0, make=None)
        if descriptor is None:
            return
        try:
            if os.listdir(paths.STATE_DIR) == [LOCK]:
                (paths.STATE_DIR / LOCK).unlink()
                paths.STATE_DIR.rmdir()
        finally:
            os.close(descriptor)


def _take(until_s: float, make: int | None = 0o700) -> int | None:
    tell_at_s = time.monotonic() + _SILENT_S
    while True:
        descriptor = _open_lock(make)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    now_s = time.monotonic()
                    if now_s >= until_s:
                        os.close(descriptor)
                        return None
                    if _tell is not None and now_s >= tell_at_s:
                        _tell(f"waiting for {_holder()}, which holds {paths.STATE_DIR / LOCK}")
                        tell_at_s = until_s
                    time.sleep(_POLL_S)
            if _is_in_place(descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open_lock(make: int | None) -> int:
    for _ in range(_TRIES):
        try:
            with files.opened_directory(paths.STATE_DIR, make=make) as directory:
                return files.open_lock(LOCK, directory)
        except FileNotFoundError:  # its last user has just taken the directory away
            if make is None:
                raise
    raise FileNotFoundError(errno.ENOENT, "comes and goes")


def _is_in_place(descriptor: int) -> bool:
    try:
        there = os.stat(paths.STATE_DIR / LOCK, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _holder() -> str:
    """The process that the kernel's list of locks names."""
    with contextlib.suppress(OSError, ValueError):
        inode = str(os.stat(paths.STATE_DIR / LOCK).st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE 4711 00:19:1234 0 EOF
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
                words = Path(f"/proc/{fields[4]}/cmdline").read_bytes().replace(b"\0", b" ")
                return f"process {fields[4]} ({words.decode(errors='replace').strip()[:200]})"
    return "a process that has just let go of it"
