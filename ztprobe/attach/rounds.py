"""The rounds of a deployment as its events or its log tell them while it is traced."""

from __future__ import annotations

from typing import Any

from ztprobe.attach.lines import Lines
from ztprobe.errors import UsageError
from ztprobe.frameworks.log_readers import round_source, wanted_lines
from ztprobe.frameworks.source import RoundsFrom

__all__ = ("Rounds",)

_FROM_TRAFFIC = RoundsFrom(
    source="traffic", uncertainty_ns=0, detail="neither events nor a log told of rounds"
)
_NEVER_NS = 1 << 62
_TELLING_LINES = 200  # of a log that is the framework's, one of so many is known


class Rounds:
    """Events so far.

    :param lines: what is read; None: nothing, rounds are told from the traffic afterwards.
    :param must_tell: it has to be a log that tells of rounds; else it may.
    """

    def __init__(self, lines: Lines | None, framework: str, *, must_tell: bool = True) -> None:
        self._lines = lines
        self._must_tell = must_tell
        self._source = round_source(framework)
        self._framework = framework
        self._starts: dict[Any, int] = {}
        self.events: list[dict[str, Any]] = []
        self.ended = 0
        self.read_lines = 0

    @property
    def what(self) -> str:
        """For people."""
        return "from the traffic" if self._lines is None else f"from {self._lines.name}"

    @property
    def now(self) -> int | None:
        """The round that goes on, by what was read; None: none, or nothing tells."""
        last = self.events[-1] if self.events else {}
        return int(last["round"]) if last.get("round") is not None and last["event"] != "round_end" else None

    @property
    def between(self) -> bool:
        """Whether one round has ended and the next has not begun, by what was read."""
        return bool(self.events) and self.events[-1]["event"] in ("round_end", "run_end")

    def read(self, attached_ns: int, detached_ns: int = 0) -> list[tuple[int, float]]:
        """Take what has been logged meanwhile. :returns: number and duration of rounds that have ended.

        :param detached_ns: 0: not yet.
        :raises UsageError: what is read is no log of this framework's.
        """
        if self._lines is None:
            return []
        for line, received_ns in self._lines.fresh():
            self.read_lines += 1
            self._source.take(line, received_ns)
        if self._must_tell and self.read_lines >= _TELLING_LINES and not self._source.recognised:
            raise UsageError(
                f"--events-from {self._lines.name}: none of its {self.read_lines} lines is of the server"
                f" application's log, expected {wanted_lines(self._framework)}; see docs/frameworks.md"
            )
        done = []
        for event in self._source.fresh():
            number, at_ns = event.get("round"), event["time_monotonic_ns"]
            # Of a round whose beginning nobody saw, and of what came before and after, nothing is kept.
            if not attached_ns <= at_ns <= (detached_ns or _NEVER_NS):
                continue
            if event["event"] == "round_start":
                self._starts[number] = at_ns
            elif number is not None and number not in self._starts:
                continue
            self.events.append(event)
            if event["event"] == "round_end":
                self.ended += 1
                done.append((int(number or 0), (at_ns - self._starts[number]) / 1e9))
        return done

    def rounds_from(self) -> RoundsFrom:
        """For run.json."""
        return self._source.rounds_from() if self._source.recognised else _FROM_TRAFFIC
