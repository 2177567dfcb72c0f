"""What a server said to its hub, and was answered: there a round begins, whatever clients see of it later.

A server *puts* models into the hub, one after the other, and asks for results again and again. What puts a
model there has more bytes than what asks, even where the hub knows the model already and gets its names
alone. Before it puts anything there it prepares (asks who is there, for one): requests of sizes that come
directly before models are put there, before nearly all of them, and at no other time. What it asked last
before it prepared, and was answered, concludes a round.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from analysis.rounds.messages import TrafficTransfer

__all__ = ("ServerSide",)

# Of a server's turns towards its hub: what puts a model (or its names) there has more bytes than what polls.
_MORE_THAN_POLLS = 3.0
# Models for several clients are put into a hub without a poll's pause between them, and prepared as quickly.
_RUN_NS = 1_000_000_000
# What prepares comes before this share of the times at which models are put there.
_MOSTLY = 0.8
# ... and what concludes, between which and what prepares a heartbeat may come.
_HALF = 0.5


class ServerSide:
    """Of one run.

    :param transfers: between the server and its hub (down: towards the hub); none: there is no hub.
    """

    def __init__(self, transfers: Iterable[TrafficTransfer]) -> None:
        ordered = sorted(transfers)
        asked, answered = ([one for one in ordered if one.down == down] for down in (True, False))
        self._asked, self._answered, self._got = asked, answered, _more(answered)
        self._runs = _runs(_more(asked))  # when models began and ceased to be put there
        self._starts = [start_ns for start_ns, _ in self._runs]
        self._preparing = self._prepares(asked)

    def refined(self, begun_ns: int, before_ns: int | None) -> tuple[int, int | None]:
        """A round's start, and the last that was seen before it.

        :param begun_ns: when clients saw it begin.
        :param before_ns: when they saw the last of the round before; None: it is the first.
        """
        last = bisect_left(self._starts, begun_ns) - 1
        if last < 0 or (before_ns is not None and self._starts[last] < before_ns):
            return begun_ns, before_ns
        start_ns = self._starts[last]
        since_ns = max(start_ns - _RUN_NS, self._runs[last - 1][1] if last else 0)
        first = bisect_left(self._preparing, since_ns)
        if first < len(self._preparing) and self._preparing[first] < start_ns:
            start_ns = self._preparing[first]
            before = bisect_left(self._answered, start_ns, key=lambda one: one.first_ns)
            if before_ns is not None and before:
                before_ns = max(before_ns, self._answered[before - 1].last_ns)
            return start_ns, before_ns
        got = [one.last_ns for one in self._got if one.last_ns <= start_ns]
        return start_ns, max(before_ns, got[-1]) if got and before_ns is not None else before_ns

    def concluded(self, over_ns: int, next_ns: int | None) -> tuple[int, bool]:
        """When the server was given the last result of a round, and whether that is known.

        :param over_ns: when its clients were done.
        :param next_ns: when the next round began; None: it is the last.
        """
        given = [one.last_ns for one in self._got]
        concluding: list[int] = []
        sizes = self._concluding()
        for one in self._asked:
            if one.bytes in sizes:
                answer = bisect_left(self._answered, one.last_ns, key=lambda other: other.first_ns)
                concluding += [other.last_ns for other in self._answered[answer : answer + 1]]
        last_ns = max([over_ns, *(ns for ns in (*given, *concluding) if next_ns is None or ns < next_ns)])
        return last_ns, last_ns in concluding

    def _concluding(self) -> set[int]:
        """Sizes of what the server asks last before it prepares; not what it asks all the time."""
        found = Counter[int]()
        for start_ns in self._starts[1:]:
            first = bisect_left(self._preparing, start_ns - _RUN_NS)
            if first < len(self._preparing) and self._preparing[first] < start_ns:
                last = bisect_left(self._asked, self._preparing[first], key=lambda one: one.first_ns) - 1
                found[self._asked[last].bytes] += 1
        return {size for size, count in found.items() if count >= max(2, _HALF * (len(self._starts) - 1))}

    def _prepares(self, asked: Sequence[TrafficTransfer]) -> list[int]:
        """When the server asked what it asks only before it puts models there."""
        by_size: dict[int, list[TrafficTransfer]] = defaultdict(list)
        for one in asked:
            by_size[one.bytes].append(one)
        found: list[int] = []
        for same in by_size.values():
            runs = [self._run_after(one.first_ns) for one in same]
            known = {run for run in runs if run is not None}
            if None not in runs and len(known) >= max(2, _MOSTLY * len(self._runs)):
                found += [one.first_ns for one in same]
        return sorted(found)

    def _run_after(self, at_ns: int) -> int | None:
        """The number of the run of models that followed at once."""
        following = bisect_left(self._starts, at_ns)
        is_near = following < len(self._starts) and self._starts[following] - at_ns <= _RUN_NS
        return following if is_near else None


def _more(transfers: Sequence[TrafficTransfer]) -> list[TrafficTransfer]:
    if not transfers:
        return []
    limit = _MORE_THAN_POLLS * median(one.bytes for one in transfers)
    return [one for one in transfers if one.bytes >= limit]


def _runs(put: Sequence[TrafficTransfer]) -> list[tuple[int, int]]:
    """First and last byte of models that were put there one after the other."""
    runs: list[tuple[int, int]] = []
    for one in put:
        if runs and one.first_ns - runs[-1][1] <= _RUN_NS:
            runs[-1] = runs[-1][0], max(runs[-1][1], one.last_ns)
        else:
            runs.append((one.first_ns, one.last_ns))
    return runs
