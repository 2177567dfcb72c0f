"""Containers' logs as kubelet writes them, kept in the run directory as the local runtime has them.

A pod's log goes with the pod, and is rotated when it is long. So what is new is copied again and again: one
file for standard output, one for standard error, without kubelet's words before each line.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from ztprobe.kubernetes.pod_facts import newest_log
from ztprobe.rundir.logs import KUBELET_WORDS

__all__ = ("KeptLog",)

_PIECE = 1 << 16


class KeptLog:
    """One container's.

    :param source: the directory of its logs, one file for each start; it may not be there yet.
    :param kept: where standard output goes; standard error is beside it as ``.err``.
    """

    def __init__(self, source: Path, kept: Path) -> None:
        self._source = source
        self.kept = kept
        self._open: BinaryIO | None = None
        self._part = b""  # of kubelet's line

    def look(self) -> None:
        """Copy what is new: whole lines."""
        with contextlib.suppress(OSError):  # it is not there yet, or no more
            while self._opened():
                self._copy()
                if not self._is_over():
                    return

    complete = look

    def _opened(self) -> bool:
        if self._open is None:
            self._open = newest_log(self._source).open("rb")
        return True

    def _copy(self) -> None:
        assert self._open is not None
        while piece := self._open.read(_PIECE):
            *lines, self._part = (self._part + piece).split(b"\n")
            new: dict[str, bytes] = {}
            for line in lines:
                words = KUBELET_WORDS.match(line)
                stream = "stderr" if words is not None and words["stream"] == b"stderr" else "stdout"
                text = line if words is None else line[words.end() :]
                end = b"" if words is not None and words["tag"] == b"P" else b"\n"
                new[stream] = new.get(stream, b"") + text + end
            for stream, text in new.items():
                path = self.kept if stream == "stdout" else self.kept.with_suffix(".err")
                with path.open("ab") as file:
                    file.write(text)

    def _is_over(self) -> bool:
        """A log that was rotated goes on in a new file of its name; what was left of the old one is read."""
        assert self._open is not None
        now, mine = newest_log(self._source).stat(), os.fstat(self._open.fileno())
        if (now.st_ino, now.st_dev) == (mine.st_ino, mine.st_dev):
            return False
        self._copy()
        self._leave()
        return True

    def close(self) -> None:
        """Copy what is left, and read no more."""
        self.look()
        self._leave()

    def _leave(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open, self._part = None, b""
