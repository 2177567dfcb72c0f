"""What else is seen of a deployment than where a round's time went: who polls whom, what was moved, what was
not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.flows.client_path import ClientPath
from analysis.flows.hops import Talk
from analysis.flows.processes import Process
from analysis.flows.requests import FEWEST_POLLS
from analysis.flows.roles import Parts
from analysis.flows.turns import Channel, round_trips_of
from analysis.ledger.model import FlowFacts, Poller, Transfer
from analysis.rounds.timeouts import longest_of, timeout_rows
from analysis.rounds.transfers import seen_by_turns

__all__ = ("facts_of", "transfer_of")


def facts_of(
    parts: Parts,
    channels: Sequence[Channel],
    transfers: Iterable[Transfer],
    framework: Mapping[str, Any] | None = None,
    deadlines: Iterable[dict[str, Any]] = (),
) -> FlowFacts:
    """:param transfers: what was moved, by round and client.
    :param framework: as run.json has it; its limits are held against what was measured.
    :param deadlines: limits that were seen on the wire (`analysis.flows.deadlines`).
    """
    path = ["server", *(["hub"] if parts.hub is not None else []), "client"]
    if any(parts.tasks.values()):
        path.append("task's process")
    pollers = []
    for who, of, speakers, listeners in _pairs(parts, channels):
        found = _polls(Talk.between(channels, speakers, listeners), speakers)
        if found is not None:
            count, pause_ns = found
            pollers.append(Poller(who=who, of=of, polls=count, pause_ns=pause_ns))
    inner = {parts.server, parts.edge, *(node for nodes in parts.nodes.values() for node in nodes)}
    opened_ns = [
        channel.opened_ns
        for channel in channels
        if {channel.turns[0].speaker, channel.turns[0].listener} <= inner
    ]
    longest_ns = longest_of(seen_by_turns(channels, parts))
    name, version = (framework["name"], framework.get("version")) if framework is not None else ("", None)
    return FlowFacts(
        path=tuple(path),
        pollers=tuple(pollers),
        older_connections=sum(not one for one in opened_ns),
        new_connections=sum(one > 0 for one in opened_ns),
        transfers=tuple(transfers),
        timeouts=tuple(timeout_rows(name, version, longest_ns, deadlines)),
        longest_ns=longest_ns,
        one_sided=any(not node.is_watched for nodes in parts.nodes.values() for node in nodes),
        round_trips_ns=round_trips_of(channels),
    )


def _pairs(
    parts: Parts, channels: Iterable[Channel]
) -> Iterable[tuple[str, str, frozenset[Process], frozenset[Process]]]:
    edge = frozenset((parts.edge,))
    if parts.hub is not None:
        yield "server", "hub", frozenset((parts.server,)), edge
    for client, nodes in parts.nodes.items():
        yield client, "hub" if parts.hub is not None else "server", nodes, edge
        parents = {task.parent for task in parts.tasks.get(client, ())} - {node.pid for node in nodes}
        starters = frozenset(
            turn.speaker
            for channel in channels
            for turn in channel.turns
            if turn.speaker.pid in parents and turn.listener in nodes
        )
        if starters:
            yield f"{client}'s task starter", client, starters, nodes


def _polls(talk: Talk, speakers: frozenset[Process]) -> tuple[int, int] | None:
    """(how many, the usual pause from one's answer to the next), if somebody polls."""
    if len(talk.in_vain(speakers)) < FEWEST_POLLS:
        return None
    pause_ns = talk.poll_pause_ns(speakers)
    return (len(talk.polls(speakers)), pause_ns) if pause_ns is not None else None


def transfer_of(number: int, way: ClientPath, nodes: frozenset[Process]) -> Transfer:
    """What one client's messages of one phase were."""
    down = [turn for turn in way.turns if turn.listener in nodes]
    up = [turn for turn in way.turns if turn.speaker in nodes]
    longest_ns = max(
        (
            max(turn.whole_ns for turn in parts) - min(turn.first_ns for turn in parts)
            for parts in (down, up)
            if parts
        ),
        default=0,
    )
    return Transfer(
        round=number,
        client=way.client,
        down_bytes=sum(turn.bytes for turn in down),
        up_bytes=sum(turn.bytes for turn in up),
        longest_ns=longest_ns,
    )
