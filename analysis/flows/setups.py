"""Connections that were opened while the trace went on: what opening them cost on a client's way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.evidence.values import KernelEvents
from analysis.flows.processes import Process
from analysis.flows.turns import Channel
from analysis.intervals import Interval, Segment, union
from analysis.ledger.handshakes import read_setup

__all__ = ("Opening", "holding_up", "setups_of")

# What waits for a connection that is being opened.
_OVER = ("compute", "server", "poll_wait", "store_and_forward", "residual")
# Of TLS the messages themselves are seen on their way.
_OVER_TLS = (*_OVER, "propagation", "transmission")


@dataclass(frozen=True)
class Opening:
    """The handshakes of one connection, as overlays, and when something was said on it."""

    overlays: tuple[Segment, ...]
    said_ns: int | None  # the first payload that is no handshake's; None: there was none


def holding_up(openings: Iterable[Opening], *, compute: Interval | None, until_ns: int) -> list[Segment]:
    """The overlays of those that a client's way had to wait for.

    :param compute: while it computed: a connection on which something was said before that was over
        (heartbeats, a poll of the node's beside its task) held nothing up.
    :param until_ns: it had handed its update over: no connection holds that up any more.
    """
    found = []
    for opening in openings:
        begun_ns = min(one.start_ns for one in opening.overlays)
        if (
            compute is not None
            and compute[0] <= begun_ns < compute[1]
            and (opening.said_ns is None or opening.said_ns < compute[1])
        ):
            continue
        found += [dataclasses.replace(one, end_ns=min(one.end_ns, until_ns)) for one in opening.overlays]
    return [one for one in found if one.start_ns < one.end_ns]


def setups_of(
    events: KernelEvents, channels: Iterable[Channel], processes: frozenset[Process]
) -> list[Opening]:
    """TCP and TLS handshakes between these processes.

    While another of their connections carries something, that is what takes the time, and no handshake beside
    it.
    """
    mine = [channel for channel in channels if len(ends := _ends_of(channel)) > 1 and ends <= processes]
    openings = []
    for channel in mine:
        found: list[Segment] = []
        if not channel.opened_ns:
            continue
        pods = {pod for pod, key in events.packets if key == channel.key}
        setups = [read_setup(events.packets[pod, channel.key]) for pod in sorted(pods)]
        # The end that opened it saw all of it, and so took the longest.
        whole = [one for one in setups if one is not None and one.established_ns is not None]
        if not whole:
            continue
        setup = max(whole, key=lambda one: (one.established_ns or 0) - one.syn_ns)
        over_ns = setup.established_ns or 0
        if setup.established_ns is not None:
            found.append(Segment(setup.syn_ns, setup.established_ns, "tcp_handshake", _OVER))
        if setup.tls is not None and setup.tls.finished_ns is not None:
            shaking = (setup.tls.client_hello_ns, setup.tls.finished_ns)
            over_ns = setup.tls.finished_ns
            found += [
                Segment(start_ns, end_ns, "tls_handshake", _OVER_TLS)
                for start_ns, end_ns in _without(shaking, _moving(mine, channel, shaking))
            ]
        # The handshake's own messages are turns as well; what is said at once behind it may be the same turn.
        said_ns = [max(turn.first_ns, over_ns) for turn in channel.turns if turn.last_ns > over_ns]
        openings.append(Opening(tuple(found), min(said_ns, default=None)))
    return openings


def _ends_of(channel: Channel) -> frozenset[Process]:
    return frozenset((channel.turns[0].speaker, channel.turns[0].listener))


def _moving(channels: Sequence[Channel], but: Channel, during: Interval) -> list[Interval]:
    return union(
        (turn.first_ns, turn.whole_ns)
        for channel in channels
        if channel is not but
        for turn in channel.turns
        if turn.first_ns < during[1] and turn.whole_ns > during[0]
    )


def _without(whole: Interval, taken: Iterable[Interval]) -> list[Interval]:
    """What is left of it: disjoint intervals in order."""
    left: list[Interval] = []
    since_ns, end_ns = whole
    for start_ns, until_ns in taken:
        if start_ns > since_ns:
            left.append((since_ns, min(start_ns, end_ns)))
        since_ns = max(since_ns, until_ns)
    if since_ns < end_ns:
        left.append((since_ns, end_ns))
    return left
