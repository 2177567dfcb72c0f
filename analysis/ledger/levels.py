"""The levels of a deployment, and each client's way through a round over all of them.

Mostly there is one level, the server with its clients. An edge aggregator is a client of the server's and has
clients of its own: between the model that it has got and the update that it sends, their ways through the
round are placed just as the server's clients' are, by what was seen on their connections. What belongs to
none of them in that time (sending the model on, waiting for other clients, the mean) is the edge's own, and
counts as `server`, as the same work does at the server.

Where a round has several exchanges (secure aggregation's), each of them waits for everybody: the round's path
changes to whoever is last from one to the next.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from analysis.evidence.values import KernelEvents
from analysis.intervals import Interval, Segment
from analysis.ledger.connections import Path, Topology, topologies_of
from analysis.ledger.critical_path import Chain, LedgerExchange, Transmission, chain_of, setup_overlays
from analysis.ledger.delays import Delays, delays_of
from analysis.ledger.handshakes import DnsQuery, Setup, dns_queries, read_setup
from analysis.ledger.policy_waits import PolicyWait, policy_waits, wait_overlays
from analysis.ledger.short_messages import short_messages_of
from analysis.ledger.timeline import HopMessage, messages_of

__all__ = ("Level", "LevelWay", "levels_of", "stitched", "ways_of")

# Below it a message may be frames.
_LARGE_BYTES = 8 << 10


@dataclass(frozen=True)
class Level:
    """One pod that serves others, and all that was seen between them."""

    topology: Topology
    setups: Mapping[Path, Setup | None]
    down: Mapping[str, list[HopMessage]]  # client -> its messages, in order
    up: Mapping[str, list[HopMessage]]
    delays: Delays
    policy: Mapping[str, list[PolicyWait]]
    queries: Sequence[DnsQuery]

    def exchanges(self, client: str, window: Interval) -> list[LedgerExchange]:
        """What went down and what answered it, of a client within a round."""
        start_ns, end_ns = window
        inside = [
            message
            for message in sorted((*self.down[client], *self.up[client]), key=lambda m: m.first_handed_ns)
            if start_ns <= message.first_handed_ns < end_ns
        ]
        if any(message.down for message in inside):
            while not inside[0].down:  # a late answer, to the round before
                inside.pop(0)
        turns: list[HopMessage] = []
        for message in inside:
            if not turns or message.down != turns[-1].down:
                turns.append(message)
            elif _outdoes(message, turns[-1]):
                turns[-1] = message
        if turns and not turns[0].down:
            return [LedgerExchange(None, turns[0])]
        found = [
            LedgerExchange(down, up)
            for down, up in zip(turns[::2], [*turns[1::2], *([None] * (len(turns) % 2))], strict=True)
        ]
        if len(found) > 1 and found[-1].up is None and turns[-1].sent.bytes < _LARGE_BYTES:
            found.pop()
        return found

    def chain(self, client: str, window: Interval, *, open_ended: bool) -> Chain:
        """A client's segments within a round, as long as this level's pod is at it."""
        exchanges = self.exchanges(client, window)
        chain = chain_of(self.topology, self.delays, client, exchanges, *window, open_ended=open_ended)
        before_update = chain.compute or chain.turnaround
        if before_update is not None:
            setup = self.setups.get(chain.up.path) if chain.up is not None else None
            chain.overlays += setup_overlays(self.topology, chain.up, setup, self.queries, before_update[0])
        waits = wait_overlays(self.policy.get(client, ()), chain.messages, window[1])
        chain.overlays = waits + chain.overlays
        return chain


def _outdoes(later: HopMessage, earlier: HopMessage) -> bool:
    """Which of two in one direction the message is: frames are short, and go ahead of a short message."""
    if max(later.sent.bytes, earlier.sent.bytes) >= _LARGE_BYTES:
        return later.sent.bytes > earlier.sent.bytes
    return True


def levels_of(meta: Mapping[str, Any], events: KernelEvents) -> tuple[Level, dict[str, Level]]:
    """The server's level, and those of edge aggregators by the edge's name.

    :param meta: run.json.
    :raises ValueError: it does not say who serves whom.
    """
    queries = dns_queries(events.dns)
    top, *lower = topologies_of(meta, events)
    found = {one.topology.server: one for one in (_level(each, queries) for each in lower)}
    # Who is connected to and is never sent a model aggregates nothing.
    edges = {name: one for name, one in found.items() if any(one.down.values())}
    top = replace(top, aggregators=top.aggregators.intersection(edges))
    return _level(top, queries), edges


def _level(topology: Topology, queries: Sequence[DnsQuery]) -> Level:
    down: dict[str, list[HopMessage]] = defaultdict(list)
    up: dict[str, list[HopMessage]] = defaultdict(list)
    for path in topology.paths:
        down[path.client] += messages_of(topology, path, down=True)
        up[path.client] += messages_of(topology, path, down=False)
    messages = [m for found in (*down.values(), *up.values()) for m in found]
    for path in topology.paths:
        down[path.client] += short_messages_of(topology, path, down=True)
        up[path.client] += short_messages_of(topology, path, down=False)
    for found in (*down.values(), *up.values()):
        found.sort(key=lambda m: m.first_handed_ns)
    return Level(
        topology=topology,
        setups={path: read_setup(topology.packets(path)) for path in topology.paths},
        down=down,
        up=up,
        delays=delays_of(topology.server, messages),
        policy=policy_waits(topology),
        queries=queries,
    )


class Hop(NamedTuple):
    """One level of a way: who serves there, and when it had the model and was ready to answer it."""

    server: str
    chain: Chain
    span: Interval


@dataclass
class LevelWay:
    """A client's way through one round: what its chains of all levels make together."""

    hops: list[Hop]  # the server's first
    base: list[Segment] = field(default_factory=list)
    overlays: list[Segment] = field(default_factory=list)
    transmissions: list[Transmission] = field(default_factory=list)
    workers: tuple[str, ...] = ()  # whose applications' time is compute

    @classmethod
    def over(cls, *hops: Hop) -> LevelWay:
        """The way that these levels' chains make."""
        chains = [hop.chain for hop in hops]
        return cls(
            hops=list(hops),
            base=[segment for chain in chains for segment in chain.base],
            overlays=[segment for chain in chains for segment in chain.overlays],
            transmissions=[one for chain in chains for one in chain.transmissions],
            workers=(chains[-1].client,),
        )

    @property
    def top(self) -> Chain:
        """Between the server and its peer."""
        return self.hops[0].chain

    @property
    def own(self) -> Chain:
        """The client's, at the lowest level."""
        return self.hops[-1].chain

    @property
    def client(self) -> str:
        """Who trains."""
        return self.own.client

    @property
    def through(self) -> tuple[str, ...]:
        """The edge aggregators in between."""
        return tuple(hop.server for hop in self.hops[1:])

    @property
    def servers(self) -> tuple[str, ...]:
        """Those and the server."""
        return tuple(hop.server for hop in self.hops)

    @property
    def arrival_ns(self) -> int | None:
        """The server had what came of this client's update; None: it did not, or that was not seen."""
        return None if self.own.arrival_ns is None else self.top.arrival_ns

    def behind_ns(self, other: LevelWay) -> int | None:
        """By how much this client was later than another where their ways meet; None: that is not known."""
        same = self.through == other.through
        mine, its = ((one.own if same else one.top).update_arrival_ns for one in (self, other))
        return None if mine is None or its is None else mine - its


def ways_of(
    top: Chain, level: Level, edges: Mapping[str, Level], window: Interval, open_ended: Mapping[str, bool]
) -> list[LevelWay]:
    """The ways of all who are reached by one of the server's peers.

    :param top: the peer's own chain.
    :param level: the server's.
    :param open_ended: client of the edge -> whether what was not seen of it did not happen.
    """
    first = Hop(level.topology.server, top, window)
    below = edges.get(top.client)
    if below is None or top.turnaround is None:
        return [LevelWay.over(first)]
    span = top.turnaround
    return [
        LevelWay.over(
            first,
            Hop(top.client, below.chain(client, span, open_ended=open_ended.get(client, True)), span),
        )
        for client in below.topology.clients
    ]


def stitched(ways: Sequence[LevelWay], window: Interval) -> LevelWay | None:
    """The path of a round of several exchanges: until each is over, the way of whoever was last in it.

    :returns: None where a round has one exchange, or too little was seen of the others. The client that is
        named is the one whose update was waited for.
    """
    alike = Counter(len(way.own.exchanges) for way in ways if way.arrival_ns is not None)
    count = max(alike, key=lambda each: (alike[each], each), default=0)
    if count < 2 or any(len(way.hops) > 1 for way in ways):
        return None
    whole = [way for way in ways if way.arrival_ns is not None and len(way.own.exchanges) == count]
    last = [max(whole, key=lambda way: way.own.arrivals_ns[k]) for k in range(count)]
    ends_ns = [*(way.own.arrivals_ns[k] for k, way in enumerate(last[:-1])), window[1]]
    updated = next(k for k, each in enumerate(last[0].own.exchanges) if each is last[0].own.update)
    path = LevelWay(hops=last[updated].hops, workers=tuple(dict.fromkeys(way.client for way in last)))
    for k, (way, since_ns, until_ns) in enumerate(zip(last, [window[0], *ends_ns], ends_ns, strict=False)):
        path.base += _within(way.base, since_ns, until_ns)
        path.overlays += _within(way.overlays, since_ns, until_ns)
        mine = [id(message) for message in way.own.exchanges[k]]
        path.transmissions += [one for one in way.transmissions if id(one.message) in mine]
    return path


def _within(segments: Iterable[Segment], since_ns: int, until_ns: int) -> list[Segment]:
    cut = (
        replace(one, start_ns=max(one.start_ns, since_ns), end_ns=min(one.end_ns, until_ns))
        for one in segments
    )
    return [one for one in cut if one.start_ns < one.end_ns]
