"""Which process plays which part, by what it was seen to do: nothing of it is declared.

Large turns tell. The processes outside of the clients that exchange them with clients' processes are the
*edge*; where one of those exchanges as much with another process that is no client's, the edge is a hub and
that other process the server. Of a client's processes the one that exchanges them with the edge is the
*node*; those that exchange them with the node alone are *tasks*.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from analysis.flows.processes import Process, Processes
from analysis.flows.turns import LARGE_BYTES, Channel

__all__ = ("Parts", "handing_to_nobodys", "parts_of")


@dataclass(frozen=True)
class Parts:
    """Of one deployment."""

    server: Process
    hub: Process | None  # None: clients speak with the server itself
    nodes: dict[str, frozenset[Process]]  # client -> those of its processes that speak with hub or server
    tasks: dict[str, frozenset[Process]] = field(
        default_factory=dict
    )  # client -> those that it starts for tasks

    @property
    def edge(self) -> Process:
        """With whom clients speak."""
        return self.hub or self.server


def parts_of(processes: Processes, channels: Iterable[Channel]) -> Parts:
    """:raises ValueError: no client was seen to exchange a message with anybody; says what was seen."""
    clients = {name for name, one in processes.participants.items() if one.role == "client"}
    moved: Counter[frozenset[Process]] = Counter()
    for channel in channels:
        for turn in channel.turns:
            if turn.bytes >= LARGE_BYTES and turn.speaker != turn.listener:
                moved[frozenset((turn.speaker, turn.listener))] += turn.bytes
    at_edge: Counter[Process] = Counter()
    nodes: dict[str, set[Process]] = defaultdict(set)
    inside: dict[str, set[frozenset[Process]]] = defaultdict(set)
    others: list[tuple[Process, Process, int]] = []
    for pair, count in moved.items():
        one, other = sorted(pair, key=lambda process: process.participant in clients)
        if one.participant in clients:
            if one.participant == other.participant:
                inside[one.participant].add(pair)
        elif other.participant in clients:
            if one.participant:
                at_edge[one] += count
                nodes[other.participant].add(other)
        elif one.participant and other.participant:
            others.append((one, other, count))
    if not at_edge:
        raise ValueError(
            f"no message of {LARGE_BYTES} bytes or more was seen between a client and a server or hub"
        )
    edge = max(at_edge, key=lambda process: at_edge[process])
    behind: Counter[Process] = Counter()
    for one, other, count in others:
        if edge in (one, other):
            behind[other if one == edge else one] += count
    server, hub = (max(behind, key=lambda process: behind[process]), edge) if behind else (edge, None)
    tasks = {
        client: frozenset(
            process for pair in inside[client] for process in pair if process not in nodes[client]
        )
        for client in nodes
    }
    return Parts(server, hub, {name: frozenset(found) for name, found in sorted(nodes.items())}, tasks)


def handing_to_nobodys(parts: Parts, channels: Iterable[Channel]) -> list[str]:
    """Clients whose node sends messages to processes of nobody's: who starts its tasks was not named."""
    of_node = {node: client for client, nodes in parts.nodes.items() for node in nodes}
    found = set()
    for channel in channels:
        for turn in channel.turns:
            client, other = of_node.get(turn.speaker), turn.listener
            if client and turn.bytes >= LARGE_BYTES and other.is_watched and not other.participant:
                found.add(client)
    return sorted(found)
