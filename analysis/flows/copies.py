"""The models that a server puts into a hub in one phase of a round, and the updates that it takes from there:
which of them is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis.flows.hops import Talk
from analysis.flows.turns import Turn

__all__ = ("Copy", "Phase", "Update", "copies_of", "taken_of")

# More bytes than one client got, by so much: there is more than one model.
_COPIES_DIFFER = 0.5
_WHOLE = 0.95  # of a message's bytes: headers and parts that differ


@dataclass(frozen=True)
class Phase:
    """From the moment at which the server has what it needs to the moment at which it sends the next."""

    start_ns: int
    end_ns: int
    sent: tuple[Turn, ...]  # parts of the server's models
    ready_ns: int = 0  # the application said that there was something to ask for; 0: it did not


class Copy(NamedTuple):
    """A model as the hub received it."""

    first_ns: int
    had_ns: int


class Update(NamedTuple):
    """A client's message as the hub received it."""

    bytes: int
    announced_ns: int
    begun_ns: int  # the first part was there
    whole_ns: int

    def had_ns(self, in_parts: bool) -> int:
        """From when on it could be handed on: as a whole, or part by part."""
        return self.begun_ns if in_parts else self.whole_ns


def copies_of(
    phase: Phase, pulled: Mapping[str, Sequence[Turn]], at_edge: Mapping[str, Talk]
) -> dict[str, Copy]:
    """Which of the models that the server put into the hub was which client's.

    Where there is one for all, it is everybody's. Otherwise they are told apart by their number and their
    order, and by what a client that asked in vain proves: its own was not there yet.
    """
    wanted = {client: sum(turn.bytes for turn in turns) for client, turns in pulled.items() if turns}
    if not wanted:
        return {}
    one_bytes = sorted(wanted.values())[len(wanted) // 2]
    total = sum(turn.bytes for turn in phase.sent)
    count = max(1, round(total / one_bytes)) if total > one_bytes * (1 + _COPIES_DIFFER) else 1
    copies: list[Copy] = []
    moved, first_ns = 0, phase.sent[0].first_ns
    for number, turn in enumerate(phase.sent):
        moved += turn.bytes
        if moved >= (len(copies) + 1) * total / count * 0.98 or number == len(phase.sent) - 1:
            had_ns = max(one.had_ns for one in phase.sent[: number + 1])
            copies.append(Copy(first_ns, had_ns))
            if number + 1 < len(phase.sent):
                first_ns = phase.sent[number + 1].first_ns
    if count == 1:
        return dict.fromkeys(wanted, copies[-1])
    found: dict[str, Copy] = {}
    free = list(copies)
    for client in sorted(wanted, key=lambda client: pulled[client][0].first_ns):
        first = pulled[client][0]
        began_ns = at_edge[client].fetch_began_ns(first, phase.sent[0].first_ns)
        in_vain = [
            exchange.request.arrived_ns
            for exchange in at_edge[client].within(phase.sent[0].first_ns, began_ns)
            if exchange.request is not None
        ]
        lower_ns = in_vain[-1] if in_vain else 0
        fits = [copy for copy in free if lower_ns <= copy.had_ns <= first.first_ns] or free or copies
        found[client] = fits[0]
        if fits[0] in free:
            free.remove(fits[0])
    return found


def taken_of(
    parts: Sequence[Turn], updates: Mapping[str, Update], polls_ns: Sequence[int] = ()
) -> dict[str, list[Turn]]:
    """Which parts of messages that a server took from a hub are which client's; who is left out has none.

    A hub may hand on what was announced first, even if another message was whole before, or what is not whole
    yet, part by part; and a server learns of a message when it polls. What leaves the fewest out is taken for
    what it did.

    :param polls_ns: when the server asked for news, as far as that is known.
    """
    announced = sorted(updates, key=lambda client: updates[client].announced_ns)
    whole = sorted(updates, key=lambda client: updates[client].whole_ns)
    found: dict[str, list[Turn]] = {}
    told = [(announced, False, True), (announced, True, True)] if polls_ns else []
    for order, in_parts, after_poll in (
        *told,
        (announced, False, False),
        (whole, False, False),
        (announced, True, False),
    ):
        wanted = [
            (
                client,
                updates[client],
                max(
                    updates[client].had_ns(in_parts),
                    _next(polls_ns, updates[client].announced_ns) if after_poll else 0,
                ),
            )
            for client in order
        ]
        found = max(found, _dealt(parts, wanted), key=len)
    return found


def _next(polls_ns: Sequence[int], since_ns: int) -> int:
    return min((ns for ns in polls_ns if ns >= since_ns), default=0)


def _dealt(parts: Sequence[Turn], wanted: Sequence[tuple[str, Update, int]]) -> dict[str, list[Turn]]:
    """Parts of messages to those who are in turn: client -> its message's.

    :param wanted: client, its message, and since when that can be had.
    """
    found: dict[str, list[Turn]] = {}
    position = 0
    for client, update, since_ns in wanted:
        mine: list[Turn] = []
        while position < len(parts) and sum(turn.bytes for turn in mine) < _WHOLE * update.bytes:
            if mine or parts[position].first_ns >= since_ns:
                mine.append(parts[position])
            position += 1
        if mine:
            found[client] = mine
    return found
