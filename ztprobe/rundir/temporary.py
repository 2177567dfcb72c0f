"""What a command leaves in the temporary directory for people to read, and what it needs there itself.

Logs of a failed run and tracebacks stay after the command has ended, so they are few (the oldest go)
and small (of each file its end), and `ztprobe clean` removes them. A scratch directory goes with the
command; its name says whose it is, so that one left by SIGKILL can be told from one in use.
Names cannot be guessed, everything is made for its user alone, and nothing that belongs to somebody
else is ever removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ztprobe.process.identity import ProcessIdentity
from ztprobe.rundir import files

__all__ = ("MOST_KEPT", "clean", "keep_logs", "keep_traceback", "scratch")

MOST_KEPT = 5
_END_BYTES = 1 << 20
_FAILED, _TRACEBACK, _SCRATCH = "ztprobe-failed-", "ztprobe-traceback-", "ztprobe-scratch-"


def keep_logs(directory: Path) -> Path:
    """Copy the logs of an unfinished run, each file's last MiB, and say where to.

    :raises OSError: the temporary directory refuses.
    """
    kept = _temporary() / f"{_FAILED}{secrets.token_hex(8)}"
    files.make_directory(kept, 0o700)
    for log in sorted(path for logs in directory.rglob("logs") for path in logs.iterdir()):
        if log.is_file() and not log.is_symlink():
            content = _end_of(log)
            files.write_whole(kept / log.relative_to(directory), content, mode=0o600, make=0o700)
    _forget_oldest(_FAILED)
    return kept


def keep_traceback(text: str) -> Path:
    """Write it down and say where. :raises OSError: the temporary directory refuses."""
    path = _temporary() / f"{_TRACEBACK}{secrets.token_hex(8)}.txt"
    files.write_whole(path, text.encode(errors="backslashreplace"), mode=0o600)
    _forget_oldest(_TRACEBACK)
    return path


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory for the duration of the body. :raises OSError: the temporary directory refuses."""
    own = ProcessIdentity.own()
    path = _temporary() / f"{_SCRATCH}{own.pid}-{own.started_ticks}-{secrets.token_hex(8)}"
    files.make_directory(path, 0o700)
    try:
        yield path
    finally:
        files.remove_tree(path)


def clean() -> list[str]:
    """Remove what is kept, and scratch directories whose command is dead; says what, one line each."""
    found = [*_ours(_FAILED), *_ours(_TRACEBACK)]
    for path in _ours(_SCRATCH):
        named = re.fullmatch(rf"{_SCRATCH}(\d+)-(\d+)-[0-9a-f]+", path.name)
        if named and not ProcessIdentity(pid=int(named[1]), started_ticks=int(named[2])).alive:
            found.append(path)
    return [f"{path} removed" for path in found if _remove(path)]


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _ours(prefix: str) -> list[Path]:
    """Ours alone, oldest first."""
    found = []
    with contextlib.suppress(OSError), os.scandir(_temporary()) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid == os.geteuid() and not stat.S_ISLNK(status.st_mode):
                        found.append((status.st_mtime_ns, Path(entry.path)))
    return [path for _, path in sorted(found)]


def _forget_oldest(prefix: str) -> None:
    for path in _ours(prefix)[:-MOST_KEPT]:
        _remove(path)


def _remove(path: Path) -> bool:
    if files.remove_tree(path):
        return True
    with contextlib.suppress(OSError), files.opened_directory(path.parent) as above:
        os.unlink(path.name, dir_fd=above)
        return True
    return False


def _end_of(path: Path) -> bytes:
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _END_BYTES))
        return stream.read(_END_BYTES)
