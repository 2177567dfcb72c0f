"""Whose the time is: a sidecar's with bytes it cannot hand over, a message's with lost packets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from analysis.evidence.values import Drop, Endpoint, KernelEvents, LoKey, Pause, Retransmission, wire_between
from analysis.intervals import paint
from analysis.ledger.connections import Path, Topology
from analysis.ledger.critical_path import LedgerExchange, chain_of
from analysis.ledger.delays import Delays
from analysis.ledger.timeline import HopMessage
from ztprobe.events.kinds import Direction, Hook

MS = 1_000_000
SERVER_END, CLIENT_END = Endpoint("10.0.0.2", 50_051), Endpoint("10.0.0.3", 40_000)
WIRE = wire_between(SERVER_END, CLIENT_END)
CLIENT_LO, SERVER_LO = LoKey("fl-client-0", 15_001, 33_000), LoKey("fl-server", 15_051, 36_000)
FULL_QUEUE, OTHER_REASON = "QDISC_DROP", "NO_SOCKET"


def burst(first_ms: float, last_ms: float) -> Any:
    account = dict.fromkeys(("cwnd_ns", "rwnd_ns", "queue_ns", "http2_ns", "starved_ns", "tail_ns"), 0)
    edges = {"first_ns": round(first_ms * MS), "last_ns": round(last_ms * MS)}
    return SimpleNamespace(
        **edges, **account, first_seq=0, end_seq=9_000, tail_end_seq=0, bytes=9_000, packets=7, late_packets=0
    )


def message(*, down: bool, at_ms: float, delivered_ms: float) -> HopMessage:
    return HopMessage(
        path=Path("fl-client-0", WIRE, CLIENT_LO, SERVER_LO),
        down=down,
        handed=burst(at_ms, at_ms + 1),
        sent=burst(at_ms + 1, at_ms + 5),
        arrived=burst(at_ms + 2, at_ms + 10),
        delivered=burst(at_ms + 3, delivered_ms),
        read=None,
    )


def pause(since_ms: float, until_ms: float, *, down: bool) -> tuple[LoKey, Pause]:
    """On the loopback of the pod that receives the message."""
    direction = Direction.TX if down else Direction.RX
    lo = CLIENT_LO if down else SERVER_LO
    return lo, Pause(round(since_ms * MS), round(until_ms * MS), Hook.LO, direction)


def components(
    *,
    blocked: tuple[LoKey, Pause] | None = None,
    gap: tuple[LoKey, Pause] | None = None,
    drop: Drop | None = None,
    repair: Retransmission | None = None,
    down_delivered_ms: float = 10.5,
    up_delivered_ms: float = 510.5,
    delays: Delays | None = None,
) -> dict[str, float]:
    topology = Topology(
        server="fl-server",
        ports=frozenset({50051}),
        clients=("fl-client-0",),
        addresses={"fl-server": SERVER_END.address, "fl-client-0": CLIENT_END.address},
        paths=[],
        events=KernelEvents(
            drops={drop.pod: [drop]} if drop else {},
            retransmissions={("fl-client-0", WIRE): [repair]} if repair else {},
            gaps={(gap[0].pod, gap[0]): [gap[1]]} if gap else {},
            blocked_readers={(blocked[0].pod, blocked[0]): [blocked[1]]} if blocked else {},
        ),
    )
    down = message(down=True, at_ms=0, delivered_ms=down_delivered_ms)
    up = message(down=False, at_ms=500, delivered_ms=up_delivered_ms)
    exchanges = [LedgerExchange(down, up)]
    chain = chain_of(topology, delays or Delays(), "fl-client-0", exchanges, 0, 1000 * MS)
    found: dict[str, float] = {}
    for piece in paint(0, 1000 * MS, chain.base, chain.overlays):
        found[piece.component] = found.get(piece.component, 0) + (piece.end_ns - piece.start_ns) / MS
    assert sum(found.values()) == 1000
    return found


@pytest.mark.parametrize(
    ("down", "application"), [(False, "server"), (True, "compute")], ids=["update", "model"]
)
def test_a_sidecar_that_nobody_reads_from_is_not_to_blame(down: bool, application: str) -> None:
    delivered = {"down_delivered_ms": 110.0 if down else 10.5, "up_delivered_ms": 510.5 if down else 610.0}
    start_ms = 0 if down else 500
    held = components(**delivered)
    # Blocked since before the last byte arrived: until then the wire is what holds things up.
    found = components(blocked=pause(start_ms + 8, start_ms + 90, down=down), **delivered)
    assert held["proxy"] - found["proxy"] == pytest.approx(80)
    assert found[application] - held[application] == pytest.approx(80)
    assert found["transmission"] == held["transmission"]


def test_a_sidecar_that_pauses_by_itself_is() -> None:
    delivered = {"down_delivered_ms": 10.5, "up_delivered_ms": 610.0}
    assert components(gap=pause(520, 590, down=False), **delivered) == components(**delivered)
    others = pause(520, 590, down=True)
    assert components(blocked=others, **delivered) == components(**delivered)


@pytest.mark.parametrize(
    ("pod", "reason", "seq", "round_trip_ms", "variation_ms", "stalled_ms"),
    [
        ("fl-client-0", FULL_QUEUE, 1000, 90, 0, 0),
        ("node", FULL_QUEUE, 1000, 90, 0, 0),
        ("fl-client-0", FULL_QUEUE, 0, 90, 0, 3),  # recorded without its number
        ("fl-client-0", FULL_QUEUE, 900_000, 90, 0, 3),  # another packet
        ("fl-client-0", FULL_QUEUE, 1000, 4, 0, 3),  # netem gives random losses the same reason
        ("fl-client-0", FULL_QUEUE, 1000, 90, 9, 3),  # ... and round trips vary
        ("fl-server", FULL_QUEUE, 1000, 90, 0, 3),
        ("fl-client-0", OTHER_REASON, 1000, 90, 0, 3),
    ],
)
def test_what_a_full_queue_dropped_is_the_rates(
    pod: str, reason: str, seq: int, round_trip_ms: int, variation_ms: int, stalled_ms: float
) -> None:
    ends = (CLIENT_END, SERVER_END)
    at_ns, first_sent_ns, repaired_ns = round(501.5 * MS), 501 * MS, 504 * MS
    drop = Drop(pod, at_ns, reason, "tcp", *ends, 16, seq, 4344, WIRE)
    repair = Retransmission(repaired_ns, first_sent_ns, 0, 2448, 1448, "established", round_trip_ms * 1000)
    found = components(drop=drop, repair=repair, delays=Delays({"fl-client-0": variation_ms * MS}))
    assert found.get("retransmission", 0) == pytest.approx(stalled_ms)
    assert found["transmission"] + stalled_ms == components()["transmission"]
