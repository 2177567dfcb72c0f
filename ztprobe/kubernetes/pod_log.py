"""A container's log through the API, kept in a file as it grows, whatever becomes of the connection.

The log is followed by a stream. Each of its lines comes with the time at which it was written, to the
nanosecond, so that a stream which has broken is taken up again a little before where it ended, and what came
twice is told from what is new. Standard output and standard error come as one.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ztprobe.errors import ZtprobeError

__all__ = ("PodLog", "ReadLog")

# Lines of a log, each with its time. Since how many seconds ago (None: since its begin); whether to go on.
ReadLog = Callable[[int | None, bool], Iterator[bytes]]

_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\S+ ")
_AGAIN_S = 1.0
_OVERLAP_S = 5  # clocks are read to the second, and a node's may be slewed meanwhile
_MOST_KNOWN = 20_000  # lines, far more than any overlap has


class PodLog:
    """One container's.

    :param read: asks the API.
    :param kept: where its lines go.
    """

    def __init__(self, read: ReadLog, kept: Path) -> None:
        self.kept = kept
        self._read = read
        self._lock = threading.Lock()
        self._known: dict[bytes, None] = {}  # in the order in which they came
        self._heard_s: float | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin to follow it; what comes is in the file a moment later."""
        if self._thread is None:
            self.complete()
            self._thread = threading.Thread(target=self._follow, name="pod-log", daemon=True)
            self._thread.start()

    def complete(self) -> None:
        """Have all that was written by now in the file, as far as the API tells."""
        with contextlib.suppress(ZtprobeError):  # the container has not begun, or the API is away for a while
            self._take(follow=False)

    def close(self) -> None:
        """Complete it, and read no more."""
        if not self._closing.is_set():
            self.complete()
            with self._lock:  # whoever follows it writes nothing after that
                self._closing.set()

    def _follow(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(ZtprobeError):
                self._take(follow=True)
            self._closing.wait(_AGAIN_S)

    def _take(self, *, follow: bool) -> None:
        asked_s, heard_s = time.monotonic(), self._heard_s
        since_s = None if heard_s is None else math.ceil(asked_s - heard_s) + _OVERLAP_S
        for line in self._read(since_s, follow):
            with self._lock:
                if self._closing.is_set():
                    return
                self._heard_s = time.monotonic()
                self._keep(line)
        with self._lock:
            self._heard_s = max(self._heard_s or asked_s, asked_s)

    def _keep(self, line: bytes) -> None:
        words = _TIME.match(line)
        if words is None or line in self._known:  # what kubelet says for itself has no time
            return
        self._known[line] = None
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        with self.kept.open("ab") as file:
            file.write(line[words.end() :] + b"\n")
