"""What the readers of all frameworks' logs share: lines made plain, times, rounds that are open.

A framework's reader says what a line's words mean (`FrameworkLog.read`); when it happened is settled here,
by the stamp of whatever collected the log, else by the line's own, else by when it was received.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ztprobe.frameworks.source import Event, RoundsFrom
from ztprobe.frameworks.stamps import LineStamp, ZoneOf, without_prefix
from ztprobe.printable import printable

__all__ = ("FrameworkLog", "Word")

# Colours and cursor movements (ECMA-48 control sequences), and a stray escape character.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b")
_LONGEST_REASON = 200  # characters
# A line is written when it happens, and whoever stamps or reads it comes a moment later.
_WRITTEN_NS = 5_000_000


@dataclass(frozen=True)
class Word:
    """What one line says: an event of a round, and what is known besides."""

    event: str
    round: int | None = None  # None: the round that is open
    facts: dict[str, Any] = field(default_factory=dict)
    closes: bool = False  # the open round is over, too


class FrameworkLog(ABC):
    """A RoundSource of one framework's log."""

    kind = "log"
    framework: str
    # By how much later than it was written a line may be received where it carries no time.
    batched_ns = 0

    def __init__(self, read_every_ns: int = 100_000_000) -> None:
        """:param read_every_ns: how often the log is looked at, which lines without a clock depend on."""
        self._read_every_ns = read_every_ns
        self._made_ns = time.monotonic_ns()
        self._offset_ns = time.time_ns() - self._made_ns
        self._zone = ZoneOf()
        self._fresh: list[Event] = []
        self._recognised = False
        self._open: int | None = None
        self._before = 0  # rounds of jobs that ran before this one, in the same log
        self._highest = -1
        self._times: dict[str, int] = {}  # what was timed by: its largest uncertainty
        self._last_start_ns = 0  # of a round, by when its line was received
        self._kept_back_ns = (
            0  # lines of several rounds came together, as long after they were written at most
        )

    @abstractmethod
    def read(self, text: str) -> tuple[LineStamp | None, bool, Word | None]:
        """The line's own stamp; whether it is this framework's; what it says of rounds."""

    def take(self, line: bytes, received_ns: int) -> None:
        """See `RoundSource.take`."""
        received_unix_ns = received_ns + self._offset_ns
        text = _ESCAPES.sub("", line.decode("utf-8", errors="replace")).rstrip()
        text, collected = without_prefix(text, time.gmtime(received_unix_ns // 10**9).tm_year)
        own, is_ours, word = self.read(text)
        if not is_ours:
            return
        self._recognised = True
        if word is None:
            if (stamp := collected or own) is not None:
                self._zone.unix_ns(stamp, received_unix_ns)
            return
        self._add(word, collected or own, received_ns)

    def fresh(self) -> list[Event]:
        """See `RoundSource.fresh`."""
        events, self._fresh = self._fresh, []
        return sorted(events, key=lambda event: event["time_monotonic_ns"])

    @property
    def recognised(self) -> bool:
        """See `RoundSource.recognised`."""
        return self._recognised

    def rounds_from(self) -> RoundsFrom:
        """See `RoundSource.rounds_from`."""
        uncertainty_ns = max(self._times.values(), default=self._received_uncertainty_ns())
        if self._kept_back_ns:
            uncertainty_ns = max(uncertainty_ns, self._kept_back_ns)
            clock = "whose lines came several rounds at a time: whatever prints them keeps them back"
        elif "received" not in self._times and self._times:
            clock = "by the clock in its lines"
        elif self.batched_ns:
            clock = f"received in batches, up to {self.batched_ns / 1e9:.2g} s behind"
        else:
            clock = "by when each line was received: they carry no time"
        return RoundsFrom(
            source="log", uncertainty_ns=uncertainty_ns, detail=f"{self.framework}'s log, {clock}"
        )

    def _received_uncertainty_ns(self) -> int:
        return self._read_every_ns + self.batched_ns + _WRITTEN_NS

    def _add(self, word: Word, stamp: LineStamp | None, received_ns: int) -> None:
        if stamp is not None:
            unix_ns = self._zone.unix_ns(stamp, received_ns + self._offset_ns)
            times = {"time_unix_ns": unix_ns, "time_monotonic_ns": unix_ns - self._offset_ns}
            time_from, uncertainty_ns = "log", stamp.precision_ns + _WRITTEN_NS
        else:
            times = {"time_unix_ns": received_ns + self._offset_ns, "time_monotonic_ns": received_ns}
            time_from, uncertainty_ns = "received", self._received_uncertainty_ns()
            self._notice_kept_back(word, received_ns)
        self._times[time_from] = max(self._times.get(time_from, 0), uncertainty_ns)
        for event, number, facts in self._rounds(word):
            self._fresh.append(
                {
                    "event": event,
                    "round": number,
                    **times,
                    "time_from": time_from,
                    "uncertainty_ns": uncertainty_ns,
                    **{name: _plain(value) for name, value in facts.items()},
                }
            )

    def _notice_kept_back(self, word: Word, received_ns: int) -> None:
        if word.event != "round_start":
            return
        if received_ns - self._last_start_ns <= self._read_every_ns:
            self._kept_back_ns = max(1, received_ns - self._made_ns)
        self._last_start_ns = received_ns

    def _rounds(self, word: Word) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """The events of a word, with the numbers of their rounds: a second job in a log counts on."""
        if word.event == "round_start":
            assert word.round is not None
            if self._open is not None:
                yield "round_end", self._open, {}
            if self._before + word.round <= self._highest:
                self._before = self._highest + 1 - word.round
            self._open = self._highest = self._before + word.round
            named = {"named": word.round} if self._before else {}
            yield word.event, self._open, {**named, **word.facts}
        elif self._open is not None:
            if word.event != "round_end":
                yield word.event, self._open, word.facts
            if word.closes:
                yield "round_end", self._open, word.facts if word.event == "round_end" else {}
                self._open = None


def _plain(value: Any) -> Any:
    return printable(value, _LONGEST_REASON) if isinstance(value, str) else value
