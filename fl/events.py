"""Round events as JSON lines on standard output, stamped with both clocks.

`time_monotonic_ns` is CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`, so a line
can be laid beside kernel events without conversion; `time_unix_ns` is for people
and for comparing nodes. Each line is flushed at once: whoever follows the log must
not depend on a buffer filling up.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from dataclasses import dataclass
from typing import TextIO

__all__ = ("EventLog", "Stamp", "now")


@dataclass(frozen=True, slots=True)
class Stamp:
    """One instant on both clocks."""

    unix_ns: int
    monotonic_ns: int


def now() -> Stamp:
    """Read both clocks, monotonic first."""
    monotonic_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return Stamp(time.time_ns(), monotonic_ns)


class EventLog:
    """Writes whole lines from any thread.

    :param constant: fields that every event carries, e.g. `client_id`.
    """

    def __init__(self, stream: TextIO | None = None, **constant: object) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._constant = constant
        self._lock = threading.Lock()

    def emit(self, event: str, round_number: int, *, at: Stamp | None = None, **fields: object) -> Stamp:
        """Write one event (`at`: when it happened, default now) and return its stamp."""
        stamp = at or now()
        line = {
            "event": event,
            "round": round_number,
            "time_unix_ns": stamp.unix_ns,
            "time_monotonic_ns": stamp.monotonic_ns,
            **self._constant,
            **fields,
        }
        # A training that diverges has a loss that is no number, and JSON has no word for it but null.
        sound = {key: None if _is_no_number(value) else value for key, value in line.items()}
        text = json.dumps(sound, separators=(",", ":")) + "\n"
        with self._lock:
            self._stream.write(text)
            self._stream.flush()
        return stamp


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
