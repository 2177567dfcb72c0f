"""Counts of what an agent has seen: right to the record, and no more of them than are listed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from ztprobe.agent.counts import HANDSHAKE_BOUNDS_S, OTHER, Counts, added
from ztprobe.agent.node_agent import NodeAgent
from ztprobe.agent.tally import EventTally
from ztprobe.events.kinds import EventKind
from ztprobe.events.tables import RINGS, ring_type

SYN, ACK, TX, RX, ETH, LO = 2, 16, 0, 1, 1, 2
PODS = {7: "fl/a", 8: "fl/b"}
REASONS = {5: "NO_SOCKET", 6: "NETFILTER_DROP"}


def rows(ring: str, *records: dict[str, int]) -> np.ndarray:
    made = np.zeros(len(records), ring_type(ring))
    for row, record in zip(made, records, strict=True):
        for name, value in record.items():
            row[name] = value
    return made


def packet(connection: int, ts_ns: int, flags: int, direction: int) -> dict[str, int]:
    kind = int(EventKind.SETUP)
    return {
        "connection": connection,
        "ts_ns": ts_ns,
        "tcp_flags": flags,
        "direction": direction,
        "kind": kind,
        "netns": 7,
    }


def counted(tally: EventTally, ring: str, made: np.ndarray) -> Counts:
    tally.count(ring, made, PODS, REASONS)
    return tally.counts()


class Kept:
    """A sink."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def write(self, kind: str, rows: np.ndarray) -> None:
        self.kept.append(kind)


@pytest.mark.parametrize("counts", [True, False], ids=["for a service", "for a run directory"])
def test_an_agent_counts_what_it_hands_on_if_somebody_may_ask(counts: bool) -> None:
    sink = Kept()
    agent = NodeAgent(cast("Any", sink), probes=False, counted=counts)
    agent._kernel = cast("Any", SimpleNamespace(reason_names=REASONS))
    agent._owners.pods |= PODS
    for ring in RINGS:  # each with the type that its records have
        agent._take(ring, np.zeros(3, ring_type(ring)))
    agent._take("drops", rows("drops", {"reason": 6}))
    assert sink.kept == [*RINGS, "drops"]
    assert ("drops" in agent.tally()) == counts
    if counts:
        assert agent.tally()["drops"] == {"0": 3, "NETFILTER_DROP": 1}


def test_a_handshake_lasts_from_the_first_syn_to_its_answer() -> None:
    tally = EventTally()
    counted(tally, "packets", rows("packets", packet(1, 1_000_000, SYN, TX), packet(2, 0, SYN, TX)))
    # Sent again, answered in another batch, and at the other end: the server's pod sees it, too.
    found = counted(
        tally,
        "packets",
        rows(
            "packets",
            packet(1, 2_000_000, SYN, TX),
            packet(1, 4_000_000, SYN | ACK, RX),
            packet(9, 4_000_000, SYN, RX),
            packet(9, 4_100_000, SYN | ACK, TX),
            packet(1, 5_000_000, ACK | 1, TX),
            packet(2, 20_000_000_000, SYN | ACK, RX),
        ),
    )
    assert found["connections_asked"] == {"": 2}
    assert found["handshakes"] == {"0.005": 1, "+Inf": 1}
    assert found["handshakes_s"][""] == pytest.approx(20.003)
    assert HANDSHAKE_BOUNDS_S[2] < 0.003 < HANDSHAKE_BOUNDS_S[3]


def test_messages_count_by_pod_and_on_interfaces_alone() -> None:
    def burst(netns: int, direction: int, hook: int = ETH) -> dict[str, int]:
        return {
            "netns": netns,
            "direction": direction,
            "hook": hook,
            "first_ns": 1_000_000_000,
            "ts_ns": 1_250_000_000,
            "bytes": 1000,
        }

    made = rows("bursts", burst(7, TX), burst(7, TX), burst(8, RX), burst(7, TX, LO), burst(99, TX))
    found = counted(EventTally(), "bursts", made)
    assert found == {
        "sending_s": {"fl/a": 0.5, "fl/b": 0},
        "sent_bytes": {"fl/a": 2000, "fl/b": 0},
        "receiving_s": {"fl/a": 0, "fl/b": 0.25},
        "received_bytes": {"fl/a": 0, "fl/b": 1000},
    }


def test_drops_go_by_their_reason_and_segments_sent_again_by_number() -> None:
    tally = EventTally()
    found = counted(
        tally, "drops", rows("drops", {"reason": 5}, {"reason": 6}, {"reason": 6}, {"reason": 77})
    )
    assert found["drops"] == {"NO_SOCKET": 1, "NETFILTER_DROP": 2, "77": 1}
    again, other = int(EventKind.RETRANSMISSION), int(EventKind.CPU_WAIT)
    points = np.zeros(3, ring_type("points"))
    points["kind"] = [again, other, again]
    assert counted(tally, "points", points)["retransmissions"] == {"": 2}


def test_beyond_what_is_listed_they_count_together_and_none_is_lost() -> None:
    counts: Counts = {}
    for number in range(100):
        added(counts, {"sent_bytes": {f"fl/client-{number}": 1}, "drops": {f"REASON_{number}": 1}})
    added(counts, {"sent_bytes": {"fl/client-3": 1, "fl/client-99": 1, OTHER: 1}})
    assert len(counts["sent_bytes"]) == 65
    assert len(counts["drops"]) == 41
    assert counts["sent_bytes"]["fl/client-3"] == 2
    assert counts["sent_bytes"][OTHER] == 100 - 64 + 2
    assert sum(counts["drops"].values()) == 100
