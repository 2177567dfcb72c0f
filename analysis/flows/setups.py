"""Connections that were opened while the trace went on: what opening them cost on a client's way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from analysis.evidence.values import KernelEvents
from analysis.flows.processes import Process
from analysis.flows.turns import Channel
from analysis.intervals import Interval, Segment, union
from analysis.ledger.handshakes import read_setup

__all__ = ("setups_of",)

# What waits for a connection that is being opened.
_OVER = ("compute", "server", "poll_wait", "store_and_forward", "residual")
# Of TLS the messages themselves are seen on their way.
_OVER_TLS = (*_OVER, "propagation", "transmission")


def setups_of(
    events: KernelEvents, channels: Iterable[Channel], processes: frozenset[Process]
) -> list[Segment]:
    """TCP and TLS handshakes between these processes, as overlays.

    While another of their connections carries something, that is what takes the time, and no handshake beside
    it.
    """
    mine = [channel for channel in channels if len(ends := _ends_of(channel)) > 1 and ends <= processes]
    found: list[Segment] = []
    for channel in mine:
        if not channel.opened_ns:
            continue
        pods = {pod for pod, key in events.packets if key == channel.key}
        setups = [read_setup(events.packets[pod, channel.key]) for pod in sorted(pods)]
        # The end that opened it saw all of it, and so took the longest.
        whole = [one for one in setups if one is not None and one.established_ns is not None]
        if not whole:
            continue
        setup = max(whole, key=lambda one: (one.established_ns or 0) - one.syn_ns)
        if setup.established_ns is not None:
            found.append(Segment(setup.syn_ns, setup.established_ns, "tcp_handshake", _OVER))
        if setup.tls is not None and setup.tls.finished_ns is not None:
            shaking = (setup.tls.client_hello_ns, setup.tls.finished_ns)
            found += [
                Segment(start_ns, end_ns, "tls_handshake", _OVER_TLS)
                for start_ns, end_ns in _without(shaking, _moving(mine, channel, shaking))
            ]
    return found


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
