"""The phases of a round: each begins when the server sends models, and ends when it sends the next ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from analysis.flows.copies import Phase
from analysis.flows.hops import Talk
from analysis.flows.processes import Process
from analysis.flows.roles import Parts
from analysis.flows.turns import Channel, Turn
from analysis.intervals import Segment

__all__ = ("came_at", "phases_of", "preparation")

# Silence of the server between two models after which it begins something new.
_NEW_PHASE_NS = 2_000_000_000


def phases_of(
    parts: Parts,
    at_server: Talk | None,
    at_edge: Mapping[str, Talk],
    start_ns: int,
    end_ns: int,
    ready_ns: int = 0,
) -> list[Phase]:
    """Of one round.

    :param at_server: between the server and its hub; None: clients speak with the server itself.
    :param at_edge: between each client and whom it speaks with.
    :param ready_ns: when the application said that the first model could be had; 0: it did not say.
    """
    if at_server is not None:
        groups = _put_into_a_hub(parts, at_server, start_ns, end_ns)
    else:
        groups = _sent_to_clients(parts, at_edge, start_ns, end_ns)
    starts = [start_ns, *(group[0].first_ns for group in groups[1:])]
    ready = [ready_ns, *(0 for _ in groups[1:])]
    return [
        Phase(begin_ns, next_ns, tuple(group), one_ns)
        for begin_ns, next_ns, group, one_ns in zip(
            starts, [*starts[1:], end_ns], groups, ready, strict=False
        )
    ]


def _put_into_a_hub(parts: Parts, talk: Talk, start_ns: int, end_ns: int) -> list[list[Turn]]:
    """Before a server puts more there, it has got something."""
    others = talk.large(frozenset((parts.edge,)), start_ns, end_ns)
    groups: list[list[Turn]] = []
    for turn in talk.large(frozenset((parts.server,)), start_ns, end_ns):
        last_ns = max((one.last_ns for one in groups[-1]), default=0) if groups else 0
        came = any(last_ns < other.first_ns < turn.first_ns for other in others)
        if not groups or came or turn.first_ns - last_ns >= _NEW_PHASE_NS:
            groups.append([])
        groups[-1].append(turn)
    return groups


def _sent_to_clients(
    parts: Parts, at_edge: Mapping[str, Talk], start_ns: int, end_ns: int
) -> list[list[Turn]]:
    """They fetch it when they like: one may have answered before another has asked.

    A phase is over when somebody who has answered, or has been silent for long, is sent something again.
    """
    answers = {
        client: [one.first_ns for one in talk.large(parts.nodes[client], start_ns, end_ns)]
        for client, talk in at_edge.items()
    }
    sent = [
        (turn.first_ns, client, turn)
        for client, talk in at_edge.items()
        for turn in talk.large(frozenset((parts.server,)), start_ns, end_ns)
    ]
    groups: list[list[Turn]] = []
    last_ns: dict[str, int] = {}
    for first_ns, client, turn in sorted(sent, key=lambda one: one[:2]):
        before_ns = last_ns.get(client)
        if before_ns is not None and (
            first_ns - before_ns >= _NEW_PHASE_NS
            or any(before_ns < answer_ns < first_ns for answer_ns in answers[client])
        ):
            groups.append([])
            last_ns.clear()
        if not groups:
            groups.append([])
        groups[-1].append(turn)
        last_ns[client] = turn.last_ns
    return groups


def came_at(channels: Iterable[Channel], edge: frozenset[Process], nodes: frozenset[Process]) -> int:
    """When a client opened its first connection to whom it speaks with (nanoseconds); 0: before the trace."""
    opened = (
        channel.opened_ns
        for channel in channels
        if any(
            (turn.speaker in nodes and turn.listener in edge)
            or (turn.speaker in edge and turn.listener in nodes)
            for turn in channel.turns
        )
    )
    return min(opened, default=0)


def preparation(phase: Phase, available_ns: int, came_ns: int) -> list[Segment]:
    """What a server has of the time until a client could have its model.

    Where there was a model before the client came, nobody waited for the server in between: that goes
    unexplained.

    :param available_ns: when that was.
    :param came_ns: see `came_at`.
    """
    if came_ns <= phase.start_ns:
        return [Segment(phase.start_ns, available_ns, "server")]
    is_told = phase.ready_ns >= phase.start_ns
    there_ns = min(phase.ready_ns if is_told else phase.sent[0].first_ns, came_ns)
    return [Segment(came_ns, available_ns, "server"), Segment(phase.start_ns, there_ns, "server")]
