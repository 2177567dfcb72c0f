"""One hop: a message on its way from one process to the next, and who owned each instant of it.

Whatever carries it, a hop is requests and answers. Bytes that move own the time, as the wire's. While a
request is with the other side and nothing comes back, that side owns it; while there is neither, whoever
would have to ask next. A message in parts is a hop like any other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from analysis.flows.exchanges import (
    FRAME_BYTES,
    RECORD_BYTES,
    SAME_KIND_BYTES,
    TRAILING_NS,
    Exchange,
    Fetch,
    Handed,
    Refused,
    exchanges_of,
    is_spread,
)
from analysis.flows.processes import Process
from analysis.flows.requests import FEWEST_POLLS, SAME_FETCH_NS, Requests, is_like
from analysis.flows.turns import LARGE_BYTES, Channel, Turn
from analysis.intervals import Segment

__all__ = ("Talk", "hop_segments")

# So many heartbeats at most begin while a poll is answered.
_BESIDE = 1


@dataclass(frozen=True)
class Talk:
    """Everything that was said between two groups of processes, in the order of time."""

    exchanges: Sequence[Exchange]
    _asked: dict[frozenset[Process], Requests] = field(default_factory=dict, compare=False, repr=False)

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
        pause_ns: int = SAME_FETCH_NS,
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
        asked = self._requests(askers) if askers else None
        is_begun = False
        for exchange in reversed(self.exchanges_until(first.first_ns)):
            request = exchange.request
            if request is None or request is first or id(request) in left_out:
                continue
            goes_on = exchange.answer is first or begun_ns - exchange.over_ns <= pause_ns
            if (request.whole_ns if is_spread(request) else request.arrived_ns) < since_ns:
                # One that waited with the holder since before: nothing was left to ask for.
                is_held = exchange.answer is not None and exchange.answer.first_ns >= since_ns
                return since_ns if is_held and goes_on else begun_ns
            brings_news = asked is not None and asked.brings_news(exchange)
            if not goes_on or (is_begun and not brings_news):
                return begun_ns
            begun_ns = min(begun_ns, exchange.asked_ns)
            is_begun = is_begun or brings_news
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
            elif exchange.waited_ns > SAME_FETCH_NS or any(map(is_spread, exchange.turns)):
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

    def handed(
        self, last: Turn, end_ns: int, asides: Sequence[int] = (), *, pause_ns: int = SAME_FETCH_NS
    ) -> Handed:
        """When a message that is handed to who did not ask for it was there, small parts behind it included.

        Who has handed it over may well poll at once, and send a heartbeat beside that; neither is part of it.

        :param last: the last large part.
        :param end_ns: when that had arrived.
        :param asides: how long heartbeats are, in bytes.
        :param pause_ns: what comes after a longer one is something else.
        """
        if (again := self._again(last, asides)) is not None:
            last, end_ns = again, max(end_ns, again.had_ns)
        over_ns, stored_ns = end_ns, end_ns
        behind: list[tuple[Turn, Turn | None]] = []
        for exchange in self.within(last.first_ns, end_ns + _LONGEST_POLL_NS):
            request = exchange.request
            if last not in exchange.turns:
                if exchange.is_large or exchange.begun_ns - over_ns > pause_ns:
                    break
                if request is not None and request.speaker == last.speaker and not is_like(request, asides):
                    behind.append((request, exchange.answer))
            elif request is last and exchange.answer is not None:
                stored_ns = max(stored_ns, exchange.answer.first_ns)
            over_ns = max(over_ns, exchange.over_ns)
        usual = self._requests(frozenset((last.speaker,))).usual_poll
        most = SAME_KIND_BYTES + RECORD_BYTES
        for number in range(min(len(behind), _BESIDE + 1), 0, -1):  # a heartbeat may be as long as a poll
            if usual is not None and abs(behind[-number][0].bytes - usual.asked_bytes) <= most:
                del behind[-number:]
                # It acknowledges the answer before, in a frame that may arrive with the poll.
                while behind and behind[-1][1] is None and behind[-1][0].bytes <= FRAME_BYTES:
                    del behind[-1]
                break
        had_ns = max([end_ns, *(_had_ns(request, answer) for request, answer in behind)])
        answered = [answer.first_ns for _, answer in behind if answer is not None]
        return Handed(had_ns, max([had_ns, stored_ns, *answered]))

    def _again(self, last: Turn, asides: Sequence[int]) -> Turn | None:
        """The request that is like one which nobody answered and is the next; None: it was answered.

        A connection may be closed while something is sent on it.
        """
        asked = [
            one
            for one in self.within(last.first_ns, last.first_ns + _LONGEST_POLL_NS)
            if one.request is not None and one.request.speaker == last.speaker
        ]
        if any(one.request is last and one.answer is not None for one in asked):
            return None
        later = [one for one in asked if one.request is not last and not is_like(one.request, asides)]  # type: ignore[arg-type]
        if not later or later[0].answer is None:
            return None
        request = later[0].request
        return request if request is not None and is_like(request, (last.bytes,)) else None

    def polls(self, speakers: frozenset[Process]) -> list[Exchange]:
        """The small requests of one kind that these processes make again and again, after a pause each."""
        return self._requests(speakers).polls

    def poll_pause_ns(self, speakers: frozenset[Process]) -> int | None:
        """The usual time from the answer to a poll of theirs to the next; None: no two follow each other."""
        return self._requests(speakers).poll_pause_ns()

    def after_pauses(self, speakers: frozenset[Process], start_ns: int, end_ns: int) -> list[Exchange]:
        """What these processes asked in [start, end) after a pause: what brings news, and no part of it."""
        return [one for one in self._requests(speakers).for_news if start_ns <= one.begun_ns < end_ns]

    def asked_again(self, speakers: frozenset[Process], start_ns: int, end_ns: int) -> list[Refused]:
        """What parts of messages these processes asked for again in [start, end)."""
        return [one for one in self._requests(speakers).refused if start_ns <= one.again_ns < end_ns]

    def heartbeats(self, speakers: frozenset[Process], sizes: Sequence[int]) -> list[Exchange]:
        """Requests of these that are so long, and were answered like a poll in vain.

        :param sizes: in bytes, of what comes alone (see `lone_bytes`).
        """
        usual = self._requests(speakers).usual_poll
        if usual is None or not sizes:
            return []
        return [
            one
            for one in self.exchanges
            if one.request is not None
            and one.request.speaker in speakers
            and is_like(one.request, sizes)
            and usual.is_in_vain(one)
        ]

    def lone_bytes(self, speakers: frozenset[Process]) -> list[int]:
        """How long the requests of these processes are that come alone, and are no polls."""
        return self._requests(speakers).lone_bytes

    def _requests(self, speakers: frozenset[Process]) -> Requests:
        if speakers not in self._asked:
            self._asked[speakers] = Requests(self.exchanges, speakers)
        return self._asked[speakers]

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


def _had_ns(request: Turn, answer: Turn | None) -> int:
    """When a request was there: a frame of the connection may follow it in the same turn, and arrive later
    than the answer leaves."""
    return (
        min(request.had_ns, answer.first_ns) if answer is not None and is_spread(request) else request.had_ns
    )


# An answer may come so long after its request.
_LONGEST_POLL_NS = 600_000_000_000


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
            if not is_spread(turn):
                moving.append(Segment(turn.arrived_ns, turn.whole_ns, "transmission"))
                moving.append(Segment(turn.first_ns, turn.arrived_ns, "propagation"))
            elif turn is exchange.request:
                moving.append(Segment(turn.last_ns, turn.whole_ns, "propagation"))
            else:
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
