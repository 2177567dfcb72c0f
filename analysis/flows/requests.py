"""What some processes ask others for, by its rhythm: polls, parts of messages, heartbeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

from analysis.flows.exchanges import (
    SAME_KIND_BYTES,
    Exchange,
    Refused,
    UsualPoll,
    in_vain_bytes,
    is_spread,
)
from analysis.flows.processes import Process
from analysis.flows.turns import Turn

__all__ = ("FEWEST_POLLS", "SAME_FETCH_NS", "Requests", "is_like")

# Requests that follow each other this soon fetch one message; polls are further apart, or come in vain.
SAME_FETCH_NS = 250_000_000
# So often somebody has to have asked to be one that polls.
FEWEST_POLLS = 3
# Nothing else is said for so long before a poll.
_ALONE_NS = 100_000_000
# A heartbeat, and what its connection begins with.
_LONE = 2


def is_like(request: Turn, sizes: Iterable[int]) -> bool:
    """Whether it is as long as one of these kinds of requests, in bytes."""
    return any(abs(request.bytes - size) <= SAME_KIND_BYTES for size in sizes)


class _Batches(NamedTuple):
    begun: list[tuple[Exchange, int]]  # what was asked after a pause, and since when there was one
    of_parts: frozenset[int]  # as long are requests that usually follow others: for parts of messages


class Requests:
    """Of one group of processes to another."""

    def __init__(self, exchanges: Sequence[Exchange], speakers: frozenset[Process]) -> None:
        """:param exchanges: all between the two, in the order of time."""
        self._exchanges = exchanges
        self._asked = [
            one for one in exchanges if one.request is not None and one.request.speaker in speakers
        ]

    @cached_property
    def polls(self) -> list[Exchange]:
        """Small requests of one kind that are made again and again, after a pause each."""
        alone, following = list[Exchange](), Counter[int]()
        for before, one in zip([None, *self._asked], self._asked, strict=False):
            assert one.request is not None
            if before is None or one.begun_ns - before.over_ns >= _ALONE_NS:
                alone.append(one)
            elif not one.is_large:  # what brings a message may be asked for like a poll
                following[one.request.bytes] += 1
        stand = Counter(one.request.bytes for one in alone if one.request is not None)
        # Parts of messages are asked for one behind the other, and again after a pause where one was missing.
        first = [
            one for one in alone if one.request and following[one.request.bytes] <= stand[one.request.bytes]
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
        return [one for one in first if one.request is not None and is_like(one.request, (usual,))]

    def poll_pause_ns(self) -> int | None:
        """The usual time from the answer to a poll to the next; None: no two follow each other.

        What nobody answers is a frame of the connection (a window update, an acknowledgement), and nothing
        that was said between the two.
        """
        answered = [one for one in self._exchanges if one.answer is not None]
        number = {one.begun_ns: i for i, one in enumerate(answered)}
        pauses = sorted(
            later.begun_ns - before.over_ns
            for before, later in pairwise(one for one in self.polls if one.begun_ns in number)
            if number[later.begun_ns] - number[before.begun_ns] == 1
        )
        return pauses[len(pauses) // 2] if pauses else None

    @cached_property
    def usual_poll(self) -> UsualPoll | None:
        """What a poll and its answer in vain look like; None: these do not poll."""
        asked = sorted(one.request.bytes for one in self.polls if one.request is not None)
        if sum(one.answer is not None for one in self.polls) < FEWEST_POLLS:
            return None
        return UsualPoll(asked[len(asked) // 2], in_vain_bytes(self.polls))

    def brings_news(self, exchange: Exchange) -> bool:
        """Whether it is a poll that was answered with more than usual.

        Frames in its turn make it as long as many a request: then it has to come after a pause.
        """
        usual = self.usual_poll
        if usual is None or exchange.request is None or not usual.brings_news(exchange):
            return False
        return not is_spread(exchange.request) or id(exchange) in self._after_pauses

    @cached_property
    def _after_pauses(self) -> frozenset[int]:
        over_ns, found = 0, set[int]()
        for one in self._asked:
            if one.asked_ns - over_ns >= SAME_FETCH_NS:
                found.add(id(one))
            over_ns = max(over_ns, one.over_ns)
        return frozenset(found)

    @cached_property
    def for_news(self) -> list[Exchange]:
        """What was asked after a pause, and is no part of a message.

        Who has taken a message whose parts are still on their way asks for these after a pause as well: such
        a request is as long as those that follow others.
        """
        return [
            one
            for one, _ in self._batches.begun
            if one.request is not None and one.request.bytes not in self._batches.of_parts
        ]

    @cached_property
    def refused(self) -> list[Refused]:
        """Where parts of a message were asked for after a pause: it was not whole before."""
        return [
            Refused(silent_ns, one.begun_ns)
            for one, silent_ns in self._batches.begun
            if one.request is not None and one.request.bytes in self._batches.of_parts
        ]

    @cached_property
    def lone_bytes(self) -> list[int]:
        """How long the requests are that come alone, or behind the one that a new connection begins with, and
        are no polls: heartbeats, where there is more than one of a kind."""
        polls = set(map(id, self.polls))
        over_ns, batches = 0, list[list[Exchange]]()
        for one in self._asked:
            if id(one) in polls:
                continue
            if not batches or one.begun_ns - over_ns >= _ALONE_NS:
                batches.append([])
            batches[-1].append(one)
            over_ns = max(over_ns, one.over_ns)
        # Where a message is among them, it is what they are about.
        alone = (batch for batch in batches if len(batch) <= _LONE and not any(one.is_large for one in batch))
        return [one.request.bytes for one in chain.from_iterable(alone) if one.request is not None]

    @cached_property
    def _batches(self) -> _Batches:
        over_ns, begun = 0, []
        first, following = Counter[int](), Counter[int]()
        for one in self._asked:
            assert one.request is not None
            if one.begun_ns - over_ns >= SAME_FETCH_NS:
                begun.append((one, over_ns))
                first[one.request.bytes] += 1
            else:
                following[one.request.bytes] += 1
            over_ns = max(over_ns, one.over_ns)
        return _Batches(begun, frozenset(size for size, count in following.items() if count > first[size]))
