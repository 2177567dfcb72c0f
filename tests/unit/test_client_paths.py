"""A client's way through a phase, made by hand: who owned the time in which a hub is busy."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from analysis.flows.client_paths import ClientPaths
from analysis.flows.copies import Phase
from analysis.flows.processes import Process, Processes
from analysis.flows.roles import Parts
from analysis.flows.turns import Channel, Turn
from analysis.intervals import Segment, paint
from tests.turns import HUB, KEY, MS, NODE, said

SERVER = Process(3, participant="server")
ATTACHMENT = {
    "participants": [
        {"name": "server", "role": "server"},
        {"name": "hub", "role": "hub"},
        {"name": "client", "role": "client"},
    ]
}
STARTS = pd.DataFrame(columns=["ts_ns", "pid", "parent_pid", "kind"])


def of_server(turn: Turn) -> Turn:
    ends = {NODE: SERVER, HUB: HUB}
    return dataclasses.replace(turn, speaker=ends[turn.speaker], listener=ends[turn.listener])


@pytest.mark.parametrize("taken_ms", [2_000, 1_100])
def test_a_message_waits_once_the_hub_has_seen_to_it(taken_ms: int) -> None:
    """All of it has arrived at 1 s, the hub answers at 1.2 s; it may hand it on before it answers."""
    put = [of_server(said(True, 990, 1_000, 4_000_000)), of_server(said(False, 1_200, 1_200))]
    asked = [said(True, taken_ms, taken_ms), said(False, taken_ms + 10, taken_ms + 20, 4_000_000)]
    parts = Parts(server=SERVER, hub=HUB, nodes={"client": frozenset((NODE,))})
    channels = [Channel(KEY, 0, put), Channel(KEY, 0, asked)]
    paths = ClientPaths(parts, channels, Processes(ATTACHMENT, STARTS))
    way = paths.of_phase(Phase(900 * MS, 3_000 * MS, (put[0],)))["client"]
    owned = paint(900 * MS, 2_000 * MS, way.base, [])
    stored_ms = 1_200 if taken_ms > 1_200 else 1_000
    assert Segment(stored_ms * MS, taken_ms * MS, "poll_wait") in owned
    busy = Segment(1_000 * MS, 1_200 * MS, "store_and_forward")
    assert (busy in owned) is (taken_ms > 1_200)
