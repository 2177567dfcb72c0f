"""Where a message begins and ends within a turn.

A turn ends when the other side speaks, or after a silence. On a connection that carries several streams at
once, heartbeats and answers to other requests may stand before a message or behind it without either. They
are small; the probes' bursts leave small payloads out, and so tell where the message itself lies.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from analysis.flows.processes import rows_of

__all__ = ("LARGE_BYTES", "Messages", "Piece")

# Less is a request, an answer that says no, a heartbeat; more is a part of a message (the probes' bursts
# agree).
LARGE_BYTES = 8192

_SEQUENCE = 1 << 32


class Piece(NamedTuple):
    """Of a turn: sequence numbers as the wire has them."""

    first_ns: int
    last_ns: int
    first_seq: int
    end_seq: int
    is_bulk: bool


class Messages:
    """The bursts that are messages, by connection, hook and direction.

    :param bursts: of the run; None: there are none, and a turn of many bytes is taken for a message.
    """

    def __init__(self, bursts: pd.DataFrame | None) -> None:
        self._by_place: dict[tuple[int, str, str], list[Any]] = defaultdict(list)
        if bursts is not None and len(bursts):
            for row in rows_of(bursts[bursts["bytes"] >= LARGE_BYTES].sort_values("last_ns")):
                self._by_place[row.connection, row.hook, row.direction].append(row)

    def parted(self, turn: Any) -> Iterator[Piece]:
        """What stands before a turn's message, the message, and what stands behind it, as far as they are
        there.

        :param turn: a row of the table of turns.
        """
        length = (turn.end_seq - turn.first_seq) % _SEQUENCE
        whole = Piece(turn.first_ns, turn.last_ns, turn.first_seq, turn.end_seq, length >= LARGE_BYTES)
        bursts = self._by_place.get((turn.connection, turn.hook, turn.direction), [])
        first = bisect_left(bursts, turn.first_ns, key=lambda one: one.last_ns)
        burst = bursts[first] if first < len(bursts) else None
        if burst is None or burst.first_ns > turn.last_ns:
            yield whole
            return
        # How far into the turn; of what began before it: at its beginning.
        begins = (burst.first_seq - turn.first_seq) % _SEQUENCE if burst.first_ns > turn.first_ns else 0
        ends = (burst.end_seq - turn.first_seq) % _SEQUENCE if burst.last_ns <= turn.last_ns else length
        begins, ends = begins if begins < length else 0, ends if begins < ends < length else length
        at, until = ((turn.first_seq + offset) % _SEQUENCE for offset in (begins, ends))
        if begins:
            yield Piece(turn.first_ns, turn.first_ns, turn.first_seq, at, is_bulk=False)
        yield Piece(
            burst.first_ns if begins else turn.first_ns,
            burst.last_ns if ends < length else turn.last_ns,
            at,
            until,
            is_bulk=True,
        )
        if ends < length:
            tail_ns = burst.tail_ns if burst.last_ns <= burst.tail_ns <= turn.last_ns else turn.last_ns
            yield Piece(tail_ns, turn.last_ns, until, turn.end_seq, is_bulk=False)
