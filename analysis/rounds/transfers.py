"""What a run saw of models and updates, as transfers between its server and its clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from analysis.flows.processes import Process, Processes
from analysis.flows.proxies import proxy_pids, speak_for_applications
from analysis.flows.roles import Parts, parts_of
from analysis.flows.turns import Channel, channels_of
from analysis.ledger.connections import Topology
from analysis.rounds.messages import TrafficTransfer
from analysis.run_checks import checked
from ztprobe.events.kinds import Direction, Hook
from ztprobe.rundir.store import Run

__all__ = ("Seen", "seen_by_turns", "seen_of", "seen_on_wires")


@dataclass(frozen=True)
class Seen:
    """Of one run."""

    at_clients: list[TrafficTransfer]
    at_server: list[TrafficTransfer]  # between the server and its hub; none: clients speak with the server


def seen_of(run: Run) -> Seen:
    """Of a run of a deployment that ran already; nothing where no client was seen to exchange a message.

    :raises RunDirError: its tables are damaged.
    """
    run, _ = checked(dataclasses.replace(run, rounds=[]))
    processes = Processes(run.meta["attachment"], run.events["process_starts"])
    channels = channels_of(run.events, processes)
    speak_for_applications(channels, proxy_pids(run.events["turns"]))
    try:
        return seen_by_turns(channels, parts_of(processes, channels))
    except ValueError:
        return Seen([], [])


def seen_on_wires(topology: Topology) -> Seen:
    """Of a run whose pods are known: bursts at the server's interface."""
    found = []
    for path in topology.paths:
        for direction in (Direction.TX, Direction.RX):
            for burst in topology.bursts(topology.server, Hook.ETH, path.wire, direction):
                down = direction == Direction.TX
                found.append(TrafficTransfer(burst.first_ns, burst.last_ns, path.client, down, burst.bytes))
    return Seen(found, [])


def seen_by_turns(channels: Iterable[Channel], parts: Parts) -> Seen:
    """Of a deployment that ran already: turns between processes, by the parts that these play."""
    clients = {node: client for client, nodes in parts.nodes.items() for node in nodes}
    edge = frozenset((parts.edge,))
    at_clients, at_server = [], []
    for channel in channels:
        at_clients += list(_transfers(channel, edge, clients))
        if parts.hub is not None:
            at_server += list(_transfers(channel, frozenset((parts.server,)), {parts.hub: ""}))
    return Seen(at_clients, at_server)


def _transfers(
    channel: Channel, one: frozenset[Process], others: dict[Process, str]
) -> Iterator[TrafficTransfer]:
    for turn in channel.turns:
        if turn.speaker in one and turn.listener in others:
            yield TrafficTransfer(turn.first_ns, turn.whole_ns, others[turn.listener], True, turn.bytes)
        elif turn.listener in one and turn.speaker in others:
            yield TrafficTransfer(turn.first_ns, turn.whole_ns, others[turn.speaker], False, turn.bytes)
