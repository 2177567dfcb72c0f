"""What else is seen of a deployment than where a round's time went: who polls whom, what was moved, what was not seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from analysis.flows.hops import Talk
from analysis.flows.processes import Process
from analysis.flows.roles import Parts
from analysis.flows.turns import LARGE_BYTES, Channel
from analysis.flows.ways import Way
from analysis.ledger.model import FlowFacts, Poller, Transfer

__all__ = ("facts_of", "transfer_of")

# Requests of one kind differ by a number's digits; answers that say no have one size too.
_SAME_KIND_BYTES = 8
_FEWEST_POLLS = 3
# What follows sooner belongs to one fetch.
_SHORTEST_PAUSE_NS = 20_000_000


def facts_of(parts: Parts, channels: Sequence[Channel], transfers: Iterable[Transfer]) -> FlowFacts:
    """:param transfers: what was moved, by round and client."""
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
    older = sum(
        not channel.opened_ns and {channel.turns[0].speaker, channel.turns[0].listener} <= inner
        for channel in channels
    )
    return FlowFacts(
        path=tuple(path), pollers=tuple(pollers), older_connections=older, transfers=tuple(transfers)
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
    """(how many, the usual pause from one's answer to the next): the commonest small request, if it recurs."""
    kinds: dict[int, list[tuple[int, int]]] = defaultdict(list)
    small = [
        exchange
        for exchange in talk.exchanges
        if exchange.request is not None
        and exchange.request.speaker in speakers
        and not any(turn.bytes >= LARGE_BYTES for turn in exchange.turns)
    ]
    for exchange in small:
        if exchange.request is not None:
            spans = kinds[exchange.request.bytes // _SAME_KIND_BYTES]
            spans.append((exchange.begun_ns, exchange.over_ns))
    best: tuple[int, int] | None = None
    for spans in kinds.values():
        pauses = sorted(
            later[0] - before[1]
            for before, later in zip(spans, spans[1:], strict=False)
            if later[0] - before[1] >= _SHORTEST_PAUSE_NS
        )
        if len(pauses) + 1 >= _FEWEST_POLLS and (best is None or len(spans) > best[0]):
            best = len(spans), pauses[len(pauses) // 2]
    return best


def transfer_of(number: int, way: Way, nodes: frozenset[Process]) -> Transfer:
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
