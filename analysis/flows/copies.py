"""The models that a server puts into a hub in one phase of a round, and the updates that it takes from there:
which of them is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis.flows.exchanges import Refused
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
    stored_ns: int = 0  # it had been seen to: answered; 0: not told apart


class Update(NamedTuple):
    """A client's message as the hub received it."""

    announced_ns: int
    whole_ns: int  # with what is small of it
    parts: tuple[Turn, ...]  # what is large

    @property
    def bytes(self) -> int:
        """Of its large parts."""
        return sum(part.bytes for part in self.parts)

    def arrived_bytes(self, by_ns: int) -> int:
        """How much of it the hub had."""
        return sum(part.bytes for part in self.parts if part.whole_ns <= by_ns)


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
    parts: Sequence[Turn],
    updates: Mapping[str, Update],
    polls_ns: Sequence[int] = (),
    refused: Sequence[Refused] = (),
) -> dict[str, list[Turn]]:
    """Which parts of messages that a server took from a hub are which client's; who is left out has none.

    A hub hands on no more of a message than it has: that decides. Of several that it may have been, one that
    had been refused before was not whole then; a server learns of a message when it polls; and what was
    announced first usually goes first.

    :param polls_ns: when the server asked for news, as far as that is known.
    :param refused: when it asked for parts that were not there.
    """
    left = sorted(updates, key=lambda client: updates[client].announced_ns)
    found: dict[str, list[Turn]] = {}
    position, before_ns = 0, 0
    while position < len(parts) and left:
        at_ns = parts[position].first_ns
        mine = {client: _message(parts[position:], updates[client]) for client in left}
        may_be = [client for client in left if mine[client]]
        if not may_be:  # of something else
            position += 1
            continue
        refused_ns = max((one.at_ns for one in refused if before_ns < one.again_ns <= at_ns), default=0)
        polled_ns = max((ns for ns in polls_ns if ns <= at_ns), default=at_ns)
        if polled_ns > refused_ns:
            refused_ns = 0
        client = min(
            may_be,
            key=lambda client: (
                updates[client].whole_ns <= refused_ns,
                updates[client].announced_ns > polled_ns,
                left.index(client),
            ),
        )
        found[client] = mine[client]
        left.remove(client)
        position += len(mine[client])
        before_ns = max(turn.first_ns for turn in mine[client])
    return found


def _message(parts: Sequence[Turn], update: Update) -> list[Turn]:
    """The first parts, as many as this message has; none, if they are more than the hub had of it."""
    found: list[Turn] = []
    taken_bytes = 0
    for part in parts:
        if taken_bytes >= _WHOLE * update.bytes:
            break
        taken_bytes += part.bytes
        if update.arrived_bytes(part.first_ns) < _WHOLE * taken_bytes:
            return []
        found.append(part)
    return found
