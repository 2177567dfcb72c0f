"""Connections that were opened while the trace went on: what opening them cost on a client's way."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.evidence.values import KernelEvents
from analysis.flows.processes import Process
from analysis.flows.turns import Channel
from analysis.intervals import Segment
from analysis.ledger.handshakes import read_setup

__all__ = ("setups_of",)

# What waits for a connection that is being opened.
_OVER = ("compute", "server", "poll_wait", "store_and_forward", "residual")


def setups_of(
    events: KernelEvents, channels: Iterable[Channel], processes: frozenset[Process]
) -> list[Segment]:
    """TCP and TLS handshakes between these processes, as overlays."""
    found: list[Segment] = []
    for channel in channels:
        ends = {channel.turns[0].speaker, channel.turns[0].listener}
        if not channel.opened_ns or not ends <= processes:
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
            found.append(Segment(setup.tls.client_hello_ns, setup.tls.finished_ns, "tls_handshake", _OVER))
    return found
