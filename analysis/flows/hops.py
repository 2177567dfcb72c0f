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
from itertools import pairwise

from analysis.flows.exchanges import (
    RECORD_BYTES,
    SAME_KIND_BYTES,
    Exchange,
    Fetch,
    Handed,
    UsualPoll,
    exchanges_of,
)
from analysis.flows.processes import Process
from analysis.flows.turns import LARGE_BYTES, Channel, Turn
from analysis.intervals import Segment

__all__ = ("FEWEST_POLLS", "TRAILING_NS", "Talk", "hop_segments")

# Requests that follow each other this soon fetch one message; polls are further apart, or come in vain.
_SAME_FETCH_NS = 250_000_000
# What is small and belongs to a message follows its large parts this soon.
TRAILING_NS = 30_000_000
# Nothing else is said for so long before a poll.
_ALONE_NS = 100_000_000
# So often somebody has to have asked to be one that polls.
FEWEST_POLLS = 3
# A frame of the connection (a window update, an acknowledgement) is no longer.
_FRAME_BYTES = 100
# So many heartbeats at most begin while a poll is answered.
_BESIDE = 1


@dataclass(frozen=True)
class Talk:
    """Everything that was said between two groups of processes, in the order of time."""

    exchanges: Sequence[Exchange]
    _polls: dict[frozenset[Process], list[Exchange]] = field(default_factory=dict, compare=False, repr=False)
    _batches: dict[frozenset[Process], tuple[list[Exchange], Counter[int]]] = field(
        default_factory=dict, compare=False, repr=False
    )

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
            found += exchanges_of(mine)
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

    def fetch_began_ns(
        self,
        first: Turn,
        since_ns: int,
        beside: Iterable[Exchange] = (),
        askers: frozenset[Process] = frozenset(),
        pause_ns: int = _SAME_FETCH_NS,
    ) -> int:
        """When the requests began that led to a message's first part without a pause, but not before it was
        there.

        :param first: the first part.
        :param since_ns: from when on it could be had.
        :param beside: heartbeats and polls that go on all the while: they lead to nothing that is sent.
        :param askers: who ask for it. Of who polls, a poll with news is the first of these requests, and a
            heartbeat right before it is none.
        :param pause_ns: a longer one is before the first of them.
        """
        begun_ns = max(first.first_ns, since_ns)
        left_out = {id(exchange.request) for exchange in beside}
        usual = self._usual_poll(askers)
        is_begun = False
        for exchange in reversed(self.exchanges_until(first.first_ns)):
            request = exchange.request
            if request is None or request is first or id(request) in left_out:
                continue
            goes_on = exchange.answer is first or begun_ns - exchange.over_ns <= pause_ns
            if request.arrived_ns < since_ns:
                # One that waited with the holder since before: nothing was left to ask for.
                is_held = exchange.answer is not None and exchange.answer.first_ns >= since_ns
                return since_ns if is_held and goes_on else begun_ns
            if not goes_on or (usual is not None and is_begun and not usual.brings_news(exchange)):
                return begun_ns
            begun_ns = min(begun_ns, exchange.begun_ns)
            is_begun = is_begun or (usual is not None and usual.brings_news(exchange))
        return begun_ns

    def over_ns(self, last: Turn, end_ns: int, beside: Iterable[Exchange] = ()) -> int:
        """When what belongs to a message was over: its small parts and its confirmation follow without a
        pause.

        :param last: the last large part.
        :param end_ns: when that had arrived.
        :param beside: heartbeats and polls that go on all the while.
        """
        left_out = {id(exchange.request) for exchange in beside}
        for exchange in self.within(last.first_ns, end_ns + _LONGEST_POLL_NS):
            if last in exchange.turns or exchange.begun_ns <= last.first_ns:
                # An answer that takes longer may be to something else.
                if exchange.answer in (None, last) or exchange.answer.first_ns - end_ns <= TRAILING_NS:
                    end_ns = max(end_ns, exchange.over_ns)
            elif exchange.request is not None and id(exchange.request) in left_out:
                continue
            elif exchange.begun_ns - end_ns > TRAILING_NS or exchange.is_large:
                break
            elif exchange.waited_ns > _SAME_FETCH_NS or any(map(_is_spread, exchange.turns)):
                break  # held until there is something to say, or several things: no confirmation
            else:
                end_ns = max(end_ns, exchange.over_ns)
        return end_ns

    def in_vain(self, speakers: frozenset[Process]) -> list[Exchange]:
        """Polls that were answered, but with no message. What nobody answers may be control frames in TLS."""
        return [one for one in self.polls(speakers) if one.answer is not None and not one.is_large]

    def fetches_by_polls(self, speakers: frozenset[Process]) -> bool:
        """Whether messages come to these processes in answer to what they ask again and again.

        Not by chance: a heartbeat, too, may stand right before a message that is pushed.
        """
        in_vain = self.in_vain(speakers)
        if len(in_vain) < FEWEST_POLLS:
            return False
        sizes = sorted(one.request.bytes for one in in_vain if one.request is not None)
        usual = sizes[len(sizes) // 2]
        messages = [
            one.request
            for one in self.exchanges
            if one.answer is not None and one.answer.bytes >= LARGE_BYTES and one.answer.listener in speakers
        ]
        asked = [one for one in messages if one is not None and abs(one.bytes - usual) <= SAME_KIND_BYTES]
        return len(asked) * 2 > len(messages)

    def asides(self, speakers: frozenset[Process]) -> list[Exchange]:
        """Requests of these processes that say no more than their polls or heartbeats do."""
        sizes = sorted(one.request.bytes for one in self.polls(speakers) if one.request is not None)
        if not sizes:
            return []
        most = sizes[len(sizes) // 2] + SAME_KIND_BYTES
        return [
            one
            for one in self.exchanges
            if one.request is not None and one.request.speaker in speakers and one.request.bytes <= most
        ]

    def handed(self, last: Turn, end_ns: int, pause_ns: int = _SAME_FETCH_NS) -> Handed:
        """When a message that is handed to who did not ask for it was there, small parts behind it included.

        Who has handed it over may well poll at once, and send a heartbeat beside that; neither is part of it.

        :param last: the last large part.
        :param end_ns: when that had arrived.
        :param pause_ns: what comes after a longer one is something else.
        """
        over_ns, stored_ns = end_ns, end_ns
        behind: list[tuple[Turn, Turn | None]] = []
        for exchange in self.within(last.first_ns, end_ns + _LONGEST_POLL_NS):
            request = exchange.request
            if last not in exchange.turns:
                if exchange.is_large or exchange.begun_ns - over_ns > pause_ns:
                    break
                if request is not None and request.speaker == last.speaker:
                    behind.append((request, exchange.answer))
            elif request is last and exchange.answer is not None:
                stored_ns = max(stored_ns, exchange.answer.first_ns)
            over_ns = max(over_ns, exchange.over_ns)
        usual = self._usual_poll(frozenset((last.speaker,)))
        most = SAME_KIND_BYTES + RECORD_BYTES
        for number in range(1, min(len(behind), _BESIDE + 1) + 1):
            if usual is not None and abs(behind[-number][0].bytes - usual.asked_bytes) <= most:
                del behind[-number:]
                # It acknowledges the answer before, in a frame that may arrive with the poll.
                while behind and behind[-1][1] is None and behind[-1][0].bytes <= _FRAME_BYTES:
                    del behind[-1]
                break
        had_ns = max([end_ns, *(request.had_ns for request, _ in behind)])
        answered = [answer.first_ns for _, answer in behind if answer is not None]
        return Handed(had_ns, max([had_ns, stored_ns, *answered]))

    def polls(self, speakers: frozenset[Process]) -> list[Exchange]:
        """The small requests of one kind that these processes make again and again, after a pause each."""
        if speakers not in self._polls:
            self._polls[speakers] = self._find_polls(speakers)
        return self._polls[speakers]

    def poll_pause_ns(self, speakers: frozenset[Process]) -> int | None:
        """The usual time from the answer to a poll of theirs to the next; None: no two follow each other.

        What nobody answers is a frame of the connection (a window update, an acknowledgement), and nothing
        that was said between the two.
        """
        answered = [one for one in self.exchanges if one.answer is not None]
        number = {one.begun_ns: i for i, one in enumerate(answered)}
        pauses = sorted(
            later.begun_ns - before.over_ns
            for before, later in pairwise(one for one in self.polls(speakers) if one.begun_ns in number)
            if number[later.begun_ns] - number[before.begun_ns] == 1
        )
        return pauses[len(pauses) // 2] if pauses else None

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

    def _usual_poll(self, speakers: frozenset[Process]) -> UsualPoll | None:
        """What a poll of theirs and its answer in vain, which most are, look like; None: they do not poll."""
        polls = self.polls(speakers) if speakers else []
        asked = sorted(one.request.bytes for one in polls if one.request is not None)
        answered = sorted(one.answer.bytes for one in polls if one.answer is not None)
        if len(answered) < FEWEST_POLLS:
            return None
        return UsualPoll(asked[len(asked) // 2], answered[len(answered) // 2])

    def after_pauses(self, speakers: frozenset[Process], start_ns: int, end_ns: int) -> list[Exchange]:
        """What these processes asked in [start, end) after a pause: what brings news, and no part of it.

        Who has taken a message whose parts are still on their way asks for these after a pause as well: such
        a request is as long as those that follow others.
        """
        begun, following = self._begun_and_following(speakers)
        first = Counter(one.request.bytes for one in begun if one.request is not None)
        return [
            exchange
            for exchange in begun
            if start_ns <= exchange.begun_ns < end_ns
            and exchange.request is not None
            and following[exchange.request.bytes] <= first[exchange.request.bytes]
        ]

    def _begun_and_following(self, speakers: frozenset[Process]) -> tuple[list[Exchange], Counter[int]]:
        """What these asked after a pause, and how often a request of each length followed another."""
        if speakers not in self._batches:
            over_ns, begun, following = 0, [], Counter[int]()
            for exchange in self.exchanges:
                if exchange.request is None or exchange.request.speaker not in speakers:
                    continue
                if exchange.begun_ns - over_ns >= _SAME_FETCH_NS:
                    begun.append(exchange)
                else:
                    following[exchange.request.bytes] += 1
                over_ns = max(over_ns, exchange.over_ns)
            self._batches[speakers] = begun, following
        return self._batches[speakers]

    def reply(self, speakers: frozenset[Process], since_ns: int, end_ns: int) -> Turn | None:
        """The first of what these processes told in small requests, if one of them is no poll.

        An evaluation's result is as small as a control message, but it is another request than the polls
        around it.
        """
        polls = {one.request.first_ns for one in self.polls(speakers) if one.request is not None}
        return next(
            (
                one.request
                for one in self.within(since_ns, end_ns)
                if one.request is not None
                and one.request.speaker in speakers
                and one.request.first_ns not in polls
            ),
            None,
        )

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


def _is_spread(turn: Turn) -> bool:
    """Whether it was sent as several frames with pauses between them: these took no time on the wire."""
    return turn.bytes < LARGE_BYTES and turn.last_ns - turn.first_ns > TRAILING_NS


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
            if not _is_spread(turn):
                moving.append(Segment(turn.arrived_ns, turn.whole_ns, "transmission"))
            moving.append(Segment(turn.first_ns, turn.arrived_ns, "propagation"))
        if exchange.request is not None and exchange.answer is not None:
            waiting.append(Segment(exchange.request.whole_ns, exchange.answer.first_ns, asked))
        elif exchange.answer is not None and exchange.silent_ns:
            # It has said something already, and what follows is its to say: nobody has to ask once more.
            waiting.append(Segment(exchange.silent_ns, exchange.answer.first_ns, asked))
    clipped = [
        Segment(max(one.start_ns, start_ns), min(one.end_ns, end_ns), one.component)
        for one in (*moving, *waiting)
    ]
    return [*(one for one in clipped if one.end_ns > one.start_ns), Segment(start_ns, end_ns, unasked)]
