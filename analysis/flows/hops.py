"""One hop: a message on its way from one process to the next, and who owned each instant of it.

Whatever carries it, a hop is requests and answers. Bytes that move own the time, as the wire's. While a
request is with the other side and nothing comes back, that side owns it; while there is neither, whoever
would have to ask next. A message in parts is a hop like any other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from analysis.flows.processes import Process
from analysis.flows.turns import LARGE_BYTES, Channel, Turn
from analysis.intervals import Segment

__all__ = ("SAME_KIND_BYTES", "TRAILING_NS", "Exchange", "Fetch", "Talk", "hop_segments")

# Requests that follow each other this soon fetch one message; polls are further apart, or come in vain.
_SAME_FETCH_NS = 250_000_000
# What is small and belongs to a message follows its large parts this soon.
TRAILING_NS = 30_000_000
# Nothing else is said for so long before a poll.
_ALONE_NS = 100_000_000
# Requests of one kind differ by a number's digits.
SAME_KIND_BYTES = 8
# ... and by how many records of TLS they were cut into.
_RECORD_BYTES = 22


class Exchange(NamedTuple):
    """A request and its answer, either of which may be missing."""

    request: Turn | None
    answer: Turn | None

    @property
    def begun_ns(self) -> int:
        """When the first of it was sent."""
        return (self.request or self.answer).first_ns  # type: ignore[union-attr]

    @property
    def over_ns(self) -> int:
        """When the last of it had arrived."""
        return (self.answer or self.request).whole_ns  # type: ignore[union-attr]

    @property
    def waited_ns(self) -> int:
        """How long the request was with the other side."""
        if self.request is None or self.answer is None:
            return 0
        return max(0, self.answer.first_ns - self.request.whole_ns)

    @property
    def is_large(self) -> bool:
        """Whether a part of a message is in it."""
        return any(turn.bytes >= LARGE_BYTES for turn in self.turns)

    @property
    def turns(self) -> list[Turn]:
        """Of the two, those that are there."""
        return [turn for turn in self if turn is not None]


class Fetch(NamedTuple):
    """Exchanges that belong together."""

    begun_ns: int
    over_ns: int


@dataclass(frozen=True)
class Talk:
    """Everything that was said between two groups of processes, in the order of time."""

    exchanges: Sequence[Exchange]
    _polls: dict[frozenset[Process], list[Exchange]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def between(
        cls, channels: Iterable[Channel], some: frozenset[Process], others: frozenset[Process]
    ) -> Talk:
        """On all of their connections."""
        found: list[Exchange] = []
        for channel in channels:
            mine = [
                turn
                for turn in channel.turns
                if (turn.speaker in some and turn.listener in others)
                or (turn.speaker in others and turn.listener in some)
            ]
            found += _exchanges(mine)
        return cls(sorted(found, key=lambda exchange: exchange.begun_ns))

    def within(self, start_ns: int, end_ns: int) -> list[Exchange]:
        """Those that began in [start, end)."""
        first, last = (
            bisect_left(self.exchanges, ns, key=lambda exchange: exchange.begun_ns)
            for ns in (start_ns, end_ns)
        )
        return list(self.exchanges[first:last])

    def during(self, start_ns: int, end_ns: int) -> list[Exchange]:
        """Those of which anything lies in [start, end): an answer may come long after what it answers."""
        return [one for one in self.within(start_ns - _LONGEST_POLL_NS, end_ns) if one.over_ns > start_ns]

    def large(self, speakers: frozenset[Process], start_ns: int, end_ns: int) -> list[Turn]:
        """Parts of messages that these processes began to send in [start, end)."""
        turns = [
            turn
            for exchange in self.within(start_ns - _LONGEST_POLL_NS, end_ns)
            for turn in exchange.turns
            if turn.bytes >= LARGE_BYTES and turn.speaker in speakers and start_ns <= turn.first_ns < end_ns
        ]
        return sorted(turns, key=lambda turn: turn.first_ns)

    def fetch_began_ns(self, first: Turn, since_ns: int) -> int:
        """When the requests began that led to a message's first part without a pause, but not before it was
        there.

        :param first: the first part.
        :param since_ns: from when on it could be had.
        """
        begun_ns = max(first.first_ns, since_ns)
        for exchange in reversed(self.exchanges_until(first.first_ns)):
            request = exchange.request
            if request is None or request is first:
                continue
            goes_on = exchange.answer is first or begun_ns - exchange.over_ns <= _SAME_FETCH_NS
            if request.arrived_ns < since_ns:
                # One that waited with the holder since before: nothing was left to ask for.
                is_held = exchange.answer is not None and exchange.answer.first_ns >= since_ns
                return since_ns if is_held and goes_on else begun_ns
            if not goes_on:
                return begun_ns
            begun_ns = min(begun_ns, exchange.begun_ns)
        return begun_ns

    def over_ns(self, last: Turn, end_ns: int) -> int:
        """When what belongs to a message was over: its small parts and its confirmation follow without a
        pause.

        :param last: the last large part.
        :param end_ns: when that had arrived.
        """
        for exchange in self.within(last.first_ns, end_ns + _LONGEST_POLL_NS):
            if last in exchange.turns or exchange.begun_ns <= last.first_ns:
                end_ns = max(end_ns, exchange.over_ns)
            elif exchange.begun_ns - end_ns > TRAILING_NS or exchange.is_large:
                break
            else:
                end_ns = max(end_ns, exchange.over_ns)
        return end_ns

    def handed_ns(self, last: Turn, end_ns: int, pause_ns: int = _SAME_FETCH_NS) -> int:
        """When a message that is handed to who did not ask for it was there, small parts behind it included.

        Who has handed it over may well poll at once; that is no part of it.

        :param last: the last large part.
        :param end_ns: when that had arrived.
        :param pause_ns: what comes after a longer one is something else.
        """
        over_ns, behind = end_ns, []
        for exchange in self.within(last.first_ns, end_ns + _LONGEST_POLL_NS):
            request = exchange.request
            if last not in exchange.turns:
                if exchange.is_large or exchange.begun_ns - over_ns > pause_ns:
                    break
                if request is not None and request.speaker == last.speaker:
                    behind.append(request)
            over_ns = max(over_ns, exchange.over_ns)
        polls = [
            one.request.bytes for one in self.polls(frozenset((last.speaker,))) if one.request is not None
        ]
        if polls and behind:
            usual = sorted(polls)[len(polls) // 2]
            if abs(behind[-1].bytes - usual) <= SAME_KIND_BYTES + _RECORD_BYTES:
                behind.pop()
        return max([end_ns, *(request.had_ns for request in behind)])

    def polls(self, speakers: frozenset[Process]) -> list[Exchange]:
        """The small requests of one kind that these processes make again and again, after a pause each."""
        if speakers not in self._polls:
            self._polls[speakers] = self._find_polls(speakers)
        return self._polls[speakers]

    def _find_polls(self, speakers: frozenset[Process]) -> list[Exchange]:
        asked = [one for one in self.exchanges if one.request is not None and one.request.speaker in speakers]
        first = [
            one
            for before, one in zip([None, *asked], asked, strict=False)
            if before is None or one.begun_ns - before.over_ns >= _ALONE_NS
        ]
        # A poll that is not in vain is the first request of a fetch.
        begun = Counter(one.request.bytes for one in first if one.request is not None and not one.is_large)
        if not begun:
            return []
        usual = max(
            begun,
            key=lambda size: (
                sum(count for other, count in begun.items() if abs(size - other) <= SAME_KIND_BYTES),
                size,
            ),
        )
        return [one for one in first if one.request and abs(one.request.bytes - usual) <= SAME_KIND_BYTES]

    def after_pauses(self, speakers: frozenset[Process], start_ns: int, end_ns: int) -> list[Exchange]:
        """What these processes asked in [start, end) after a pause: what brings news, and no part of it."""
        over_ns, found = 0, []
        for exchange in self.exchanges_until(end_ns):
            if exchange.request is None or exchange.request.speaker not in speakers:
                continue
            if exchange.begun_ns - over_ns >= _SAME_FETCH_NS and exchange.begun_ns >= start_ns:
                found.append(exchange)
            over_ns = max(over_ns, exchange.over_ns)
        return found

    def reply(self, speakers: frozenset[Process], since_ns: int, end_ns: int) -> Fetch | None:
        """What these processes told in small requests, if one of them is no poll.

        An evaluation's result is as small as a control message, but it is another request than the polls
        around it.
        """
        polls = {one.request.first_ns for one in self.polls(speakers) if one.request is not None}
        told = next(
            (
                one.request
                for one in self.within(since_ns, end_ns)
                if one.request is not None
                and one.request.speaker in speakers
                and one.request.first_ns not in polls
            ),
            None,
        )
        if told is None:
            return None
        return Fetch(told.first_ns, self.handed_ns(told, told.had_ns))

    def last_words(self, speaker: Process, since_ns: int, end_ns: int) -> Fetch | None:
        """What a process said to others after its longest silence: what it did meanwhile was the work."""
        asked = [
            exchange
            for exchange in self.within(since_ns, end_ns)
            if exchange.request is not None and exchange.request.speaker == speaker
        ]
        if not asked:
            return None
        before_ns, found = since_ns, (0, 0)
        for number, exchange in enumerate(asked):
            found = max(found, (exchange.begun_ns - before_ns, number))
            before_ns = max(before_ns, exchange.over_ns)
        return Fetch(asked[found[1]].begun_ns, before_ns)

    def exchanges_until(self, end_ns: int) -> Sequence[Exchange]:
        """Those that began before."""
        return self.exchanges[: bisect_left(self.exchanges, end_ns, key=lambda exchange: exchange.begun_ns)]


# An answer may come so long after its request.
_LONGEST_POLL_NS = 600_000_000_000


def _exchanges(turns: Sequence[Turn]) -> list[Exchange]:
    """Of one connection: a request, and what is said before the next one."""
    found: list[Exchange] = []
    for turn in turns:
        if turn.asks or not found or found[-1].answer is not None:
            found.append(Exchange(turn, None) if turn.asks else Exchange(None, turn))
        else:
            found[-1] = Exchange(found[-1].request, turn)
    return found


def hop_segments(
    exchanges: Iterable[Exchange], start_ns: int, end_ns: int, *, asked: str, unasked: str
) -> list[Segment]:
    """Who owned [start, end), the first that covers an instant; see the module.

    :param asked: the component while a request waits for its answer.
    :param unasked: the component while nothing is asked.
    """
    moving, waiting = [], []
    for exchange in exchanges:
        for turn in exchange.turns:
            moving.append(Segment(turn.arrived_ns, turn.whole_ns, "transmission"))
            moving.append(Segment(turn.first_ns, turn.arrived_ns, "propagation"))
        if exchange.request is not None and exchange.answer is not None:
            waiting.append(Segment(exchange.request.whole_ns, exchange.answer.first_ns, asked))
    clipped = [
        Segment(max(one.start_ns, start_ns), min(one.end_ns, end_ns), one.component)
        for one in (*moving, *waiting)
    ]
    return [*(one for one in clipped if one.end_ns > one.start_ns), Segment(start_ns, end_ns, unasked)]
