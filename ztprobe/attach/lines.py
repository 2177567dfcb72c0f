"""Lines of a log as they come, each with the time at which it was read: of a file, a pipe, standard input."""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from pathlib import Path

from ztprobe.errors import UsageError

__all__ = ("Lines",)

_PIECE = 1 << 16
_MOST_LINE_BYTES = 1 << 20  # of a line that does not end; what is longer is no log


class Lines:
    """A context manager; what was in a file before is not read, for nobody saw it happen.

    :param name: a path, or ``-`` for standard input.
    """

    def __init__(self, name: str) -> None:
        """:raises UsageError: it cannot be read."""
        self.name = name
        self.ended = False  # of a pipe: its writers have gone
        self._part = b""
        try:
            self._fd = sys.stdin.fileno() if name == "-" else os.open(name, os.O_RDONLY | os.O_NONBLOCK)
            status = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "standard input is closed"
            raise UsageError(f"--events-from {name}: cannot be read: {reason}") from error
        self._is_file = stat.S_ISREG(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            os.close(self._fd)
            raise UsageError(f"--events-from {name}: is a directory, expected a file or a pipe")
        if self._is_file and name != "-":
            os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.name != "-":
            os.close(self._fd)

    def fresh(self) -> list[tuple[bytes, int]]:
        """Whole lines since the last call, without their ends, and when each was read (CLOCK_MONOTONIC)."""
        self._follow()
        pieces = []
        while self._is_file or self._is_ready():
            try:
                piece = os.read(self._fd, _PIECE)
            except BlockingIOError:
                break
            if not piece:
                self.ended = not self._is_file
                break
            pieces.append(piece)
        if not pieces:
            return []
        now_ns = time.monotonic_ns()
        *whole, self._part = (self._part + b"".join(pieces)).split(b"\n")
        self._part = self._part[-_MOST_LINE_BYTES:]
        return [(line.rstrip(b"\r"), now_ns) for line in whole]

    def _is_ready(self) -> bool:
        return not self.ended and bool(select.select([self._fd], [], [], 0)[0])

    def _follow(self) -> None:
        """A log that was rotated goes on in a new file of its name; one that was cut off begins again."""
        if not self._is_file or self.name == "-":
            return
        mine = os.fstat(self._fd)
        if mine.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            os.lseek(self._fd, 0, os.SEEK_SET)
        elif mine.st_size == os.lseek(self._fd, 0, os.SEEK_CUR):
            try:
                there = Path(self.name).stat()
                if (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev):
                    fresh = os.open(self.name, os.O_RDONLY | os.O_NONBLOCK)
                    os.close(self._fd)
                    self._fd, self._part = fresh, b""
            except OSError:
                return  # between two names
