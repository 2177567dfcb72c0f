"""Whose the time is: a sidecar's with bytes it cannot hand over, a message's with lost packets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from analysis.ledger.conditions import Conditions, Span
from analysis.ledger.connections import Path, Topology
from analysis.ledger.critical_path import chain_of
from analysis.ledger.intervals import paint
from analysis.ledger.timeline import Message
from ztprobe.events.tables import Direction, Hook, PointKind

MS = 1_000_000
WIRE = (7, 40_000)
CLIENT_LO, SERVER_LO = ("fl-client-0", 15_001, 33_000), ("fl-server", 15_051, 36_000)
FULL_QUEUE, OTHER_REASON = 64, 8
COLUMNS = (
    "ts_ns",
    "since_ns",
    "laddr",
    "raddr",
    "lport",
    "rport",
    "kind",
    "a",
    "b",
    "c",
    "pod",
    "process",
    "small_ns",
)


def burst(first_ms: float, last_ms: float) -> Any:
    account = dict.fromkeys(("cwnd_ns", "rwnd_ns", "queue_ns", "http2_ns", "starved_ns", "tail_ns"), 0)
    edges = {"first_ns": round(first_ms * MS), "last_ns": round(last_ms * MS)}
    return SimpleNamespace(**edges, **account, first_seq=0, max_seq=9, tail_seq=0, bytes=9)


def message(*, down: bool, at_ms: float, delivered_ms: float) -> Message:
    return Message(
        path=Path("fl-client-0", WIRE, CLIENT_LO, SERVER_LO),
        down=down,
        handed=burst(at_ms, at_ms + 1),
        sent=burst(at_ms + 1, at_ms + 5),
        arrived=burst(at_ms + 2, at_ms + 10),
        delivered=burst(at_ms + 3, delivered_ms),
        read=None,
    )


def blocked(since_ms: float, until_ms: float, *, down: bool, kind: PointKind) -> tuple[Any, ...]:
    pod, lport, rport = CLIENT_LO if down else SERVER_LO
    direction = Direction.TX if down else Direction.RX
    times = (round(until_ms * MS), round(since_ms * MS))
    return (*times, 127, 127, lport, rport, int(kind), 0, int(Hook.LO), int(direction), pod, "", 0)


def components(
    *points: tuple[Any, ...],
    down_delivered_ms: float = 10.5,
    up_delivered_ms: float = 510.5,
    conditions: Conditions | None = None,
) -> dict[str, float]:
    topology = Topology(
        server="fl-server",
        ports=frozenset({50051}),
        clients=("fl-client-0",),
        paths=[],
        bursts={},
        packets={},
        lo_opened_ns={},
        points=pd.DataFrame(list(points), columns=list(COLUMNS)),
        dns_packets=[],
        conditions=conditions or Conditions(),
        full_queue=frozenset({FULL_QUEUE}),
    )
    down = message(down=True, at_ms=0, delivered_ms=down_delivered_ms)
    up = message(down=False, at_ms=500, delivered_ms=up_delivered_ms)
    chain = chain_of(topology, "fl-client-0", down, up, 0, 1000 * MS)
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
    stop = blocked(start_ms + 8, start_ms + 90, down=down, kind=PointKind.BLOCKED)
    found = components(stop, **delivered)
    assert held["proxy"] - found["proxy"] == pytest.approx(80)
    assert found[application] - held[application] == pytest.approx(80)
    assert found["transmission"] == held["transmission"]


def test_a_sidecar_that_pauses_by_itself_is() -> None:
    delivered = {"down_delivered_ms": 10.5, "up_delivered_ms": 610.0}
    pause = blocked(520, 590, down=False, kind=PointKind.GAP)
    assert components(pause, **delivered) == components(**delivered)
    other = blocked(520, 590, down=True, kind=PointKind.BLOCKED)  # the other pod's
    assert components(other, **delivered) == components(**delivered)


def of_update(
    kind: PointKind, ts_ms: float, since_ms: float, *abc: int, pod: str, seq: int = 0
) -> tuple[Any, ...]:
    times = (round(ts_ms * MS), round(since_ms * MS))
    return (*times, WIRE[0], 8, WIRE[1], 50051, int(kind), *abc, pod, "", seq)


@pytest.mark.parametrize(
    ("pod", "reason", "seq", "loss_pct", "stalled_ms"),
    [
        ("fl-client-0", FULL_QUEUE, 1000, None, 0),
        ("node", FULL_QUEUE, 1000, None, 0),
        ("fl-client-0", FULL_QUEUE, 0, None, 3),  # recorded without its number
        ("fl-client-0", FULL_QUEUE, 900_000, None, 3),  # another packet
        ("fl-client-0", FULL_QUEUE, 1000, 1.0, 3),  # netem gives random losses the same reason
        ("fl-server", FULL_QUEUE, 1000, None, 3),
        ("fl-client-0", OTHER_REASON, 1000, None, 3),
    ],
)
def test_what_a_full_queue_dropped_is_the_rates(
    pod: str, reason: int, seq: int, loss_pct: float | None, stalled_ms: float
) -> None:
    conditions = Conditions((Span(from_ns=0, to_ns=1 << 62, rate_mbit=10.0, loss_pct=loss_pct),))
    drop = of_update(PointKind.DROP, 501.5, 0, reason, 6 << 16, 4344, pod=pod, seq=seq)
    repair = of_update(PointKind.RETRANSMIT, 504, 501, 2448, 1448, 1, pod="fl-client-0")
    found = components(drop, repair, conditions=conditions)
    assert found.get("retransmission", 0) == pytest.approx(stalled_ms)
    assert found["transmission"] + stalled_ms == components()["transmission"]
