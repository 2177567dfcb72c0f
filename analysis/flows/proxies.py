"""Proxies beside applications: what passes them is between the applications.

A participant's proxy (by its events' process, ``.../proxy``) only hands on. What it says on the wire was its
application's, and what the two say to each other is nobody's hop. The time that it takes is with whoever held
the message before it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import pandas as pd

from analysis.flows.processes import Process
from analysis.flows.turns import Channel
from ztprobe.events.owners import SIDECAR

__all__ = ("proxy_pids", "speak_for_applications")


def proxy_pids(turns: pd.DataFrame) -> frozenset[int]:
    """Process ids of proxies that were seen to read or write."""
    columns = zip(turns["tgid"].tolist(), turns["process"].tolist(), strict=True)
    return frozenset(pid for pid, process in set(columns) if process.endswith(f"/{SIDECAR}"))


def speak_for_applications(channels: Sequence[Channel], proxies: frozenset[int]) -> None:
    """Put applications in the place of their proxies, wherever one was seen to speak with its own."""
    spoken: dict[Process, Counter[Process]] = defaultdict(Counter)
    for channel in channels:
        for turn in channel.turns:
            for one, other in ((turn.speaker, turn.listener), (turn.listener, turn.speaker)):
                if one.pid in proxies and other.pid not in proxies and one.participant == other.participant:
                    spoken[one][other] += turn.bytes
    behind = {proxy: max(found, key=lambda one: found[one]) for proxy, found in spoken.items()}
    for channel in channels:
        for turn in channel.turns:
            turn.speaker = behind.get(turn.speaker, turn.speaker)
            turn.listener = behind.get(turn.listener, turn.listener)
