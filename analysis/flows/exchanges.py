"""A request and its answer, and what several of them are to a message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from analysis.flows.turns import LARGE_BYTES, Turn

__all__ = (
    "FRAME_BYTES",
    "RECORD_BYTES",
    "SAME_KIND_BYTES",
    "TRAILING_NS",
    "Exchange",
    "Fetch",
    "Handed",
    "Refused",
    "UsualPoll",
    "exchanges_of",
    "in_vain_bytes",
    "is_spread",
)

# Requests of one kind differ by a number's digits.
SAME_KIND_BYTES = 8
# What is small and belongs to a message follows its large parts this soon.
TRAILING_NS = 30_000_000
# A frame of the connection (a window update, an acknowledgement) is no longer.
FRAME_BYTES = 100


def is_spread(turn: Turn) -> bool:
    """Whether it was sent as several frames with pauses between them: these took no time on the wire."""
    return turn.bytes < LARGE_BYTES and turn.last_ns - turn.first_ns > TRAILING_NS


class Exchange(NamedTuple):
    """A request and its answer, either of which may be missing."""

    request: Turn | None
    answer: Turn | None
    # Of what follows an answer with nothing asked in between: since when its speaker has been silent; else 0.
    silent_ns: int = 0

    @property
    def begun_ns(self) -> int:
        """When the first of it was sent."""
        return (self.request or self.answer).first_ns  # type: ignore[union-attr]

    @property
    def asked_ns(self) -> int:
        """When what was answered was sent: frames of the connection may stand long before it, in one turn."""
        request = self.request
        return request.last_ns if request is not None and is_spread(request) else self.begun_ns

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
    def is_small(self) -> bool:
        """Whether both are there, and neither is a part of a message."""
        return self.request is not None and self.answer is not None and not self.is_large

    @property
    def turns(self) -> list[Turn]:
        """Of the two, those that are there."""
        return [turn for turn in (self.request, self.answer) if turn is not None]


class Fetch(NamedTuple):
    """Exchanges that belong together."""

    begun_ns: int
    over_ns: int


# A request or an answer is cut into one record of TLS more or less.
RECORD_BYTES = 22
_SAME_BYTES = SAME_KIND_BYTES + RECORD_BYTES


class UsualPoll(NamedTuple):
    """What somebody's polls, and their answers in vain, are like."""

    asked_bytes: int
    answered_bytes: int

    def brings_news(self, exchange: Exchange) -> bool:
        """Whether it is one of them, answered with more than usual, and with no part of a message."""
        answer = exchange.answer
        return (
            self._is_one(exchange)
            and answer is not None
            and self.answered_bytes + _SAME_BYTES < answer.bytes < LARGE_BYTES
        )

    def is_in_vain(self, exchange: Exchange) -> bool:
        """Whether it is one of them, or a heartbeat as short, and was answered with nothing."""
        answer = exchange.answer
        return (
            self._is_one(exchange)
            and answer is not None
            and answer.bytes <= self.answered_bytes + _SAME_BYTES
        )

    def _is_one(self, exchange: Exchange) -> bool:
        request = exchange.request
        if request is None:
            return False
        frames_bytes = FRAME_BYTES if is_spread(request) else 0
        return -_SAME_BYTES <= request.bytes - self.asked_bytes <= _SAME_BYTES + frames_bytes


class Handed(NamedTuple):
    """A message with who did not ask for it."""

    had_ns: int  # all of it was there
    stored_ns: int  # ... and had been seen to: it was answered


class Refused(NamedTuple):
    """Parts of a message that were not there yet, and were asked for again."""

    at_ns: int
    again_ns: int


def in_vain_bytes(polls: Iterable[Exchange]) -> int:
    """How long an answer to one of these polls is that brings nothing; 0: none was answered.

    It is the shortest of those that came more than once. Where rounds are short most polls bring something,
    so the usual answer is not the one in vain.
    """
    answers = sorted(one.answer.bytes for one in polls if one.answer is not None)
    again = (less for less, more in pairwise(answers) if more - less <= SAME_KIND_BYTES)
    return next(again, answers[0] if answers else 0)


# What a client asks first in TLS stands behind the end of its handshake, which the tickets answer.
_SECOND = 2


def exchanges_of(turns: Sequence[Turn]) -> list[Exchange]:
    """Of one connection: a request, and what is said before the next one.

    Where more than one thing is, the first may be no answer: see `_is_early`, `_SECOND`.
    """
    found: list[Exchange] = []
    for turn in turns:
        before = found[-1] if found else None
        if turn.asks:
            found.append(Exchange(turn, None))
        elif before is not None and (_is_early(before) or (len(found) == _SECOND and before.is_small)):
            found[-1] = Exchange(before.request, turn)
        elif before is None or before.answer is not None:
            silent_ns = before.answer.whole_ns if before is not None and before.answer is not None else 0
            found.append(Exchange(None, turn, silent_ns))
        else:
            found[-1] = Exchange(found[-1].request, turn)
    return found


def _is_early(exchange: Exchange) -> bool:
    """Whether the answer left before all of the request was there: it is a ticket of TLS, or a frame."""
    request, answer = exchange.request, exchange.answer
    if request is None or answer is None:
        return False
    return answer.bytes < LARGE_BYTES and request.is_seen_arriving and answer.first_ns < request.whole_ns
