"""Why last bytes are late: a queue, or a path whose delay varies. On hand-made messages."""

from __future__ import annotations

import pytest

from analysis.evidence.values import Burst, Endpoint, Retransmission, wire_between
from analysis.ledger.connections import Path
from analysis.ledger.delays import Delays, delays_of
from analysis.ledger.timeline import HopMessage
from ztprobe.events.kinds import Direction, Hook

MS = 1_000_000
SERVER = "fl-server"
SEGMENTS, SEGMENT_BYTES = 1000, 1448


def burst(
    first_ms: float, last_ms: float, *, late_packets: int = 0, direction: Direction = Direction.TX
) -> Burst:
    values = dict.fromkeys(Burst._fields, 0) | {"pod": "", "hook": Hook.ETH, "direction": direction}
    values |= {"first_ns": round(first_ms * MS), "last_ns": round(last_ms * MS), "late_packets": late_packets}
    return Burst(**values | {"bytes": SEGMENTS * SEGMENT_BYTES, "packets": SEGMENTS})


def message(
    at_ms: float, *, owd_ms: float = 20, late_ms: float = 0, lasts_ms: float = 100, client: str = "a",
    down: bool = False, late_packets: int = 0,
) -> HopMessage:  # fmt: skip
    wire = wire_between(Endpoint("10.0.0.2", 50_051), Endpoint("10.0.0.3", 40_000))
    arrives_ms = at_ms + owd_ms
    arrived = burst(arrives_ms, arrives_ms + lasts_ms + late_ms, late_packets=late_packets)
    sent = burst(at_ms, at_ms + lasts_ms)
    path = Path(client, wire, None, None)
    return HopMessage(
        path=path, down=down, handed=None, sent=sent, arrived=arrived, delivered=None, read=None
    )


def test_lateness_where_every_message_finds_the_same_delay_is_a_queues() -> None:
    sent = [message(at, late_ms=60) for at in (0, 1000, 2000)]
    delays = delays_of(SERVER, sent)
    assert delays.variation_ns == {"a": 0}
    assert delays.fills_windows(sent[0], 0) and not delays.varies(sent[0], 0)


def test_unloaded_delays_that_differ_explain_it() -> None:
    sent = [message(at, owd_ms=owd, late_ms=60) for at, owd in ((0, 60), (1000, 81), (2000, 99))]
    delays = delays_of(SERVER, sent)
    assert delays.variation_ns == {"a": 39 * MS}
    assert delays.varies(sent[0], 0) and not delays.fills_windows(sent[0], 0)
    # ... but not a lateness of another order
    assert delays.fills_windows(message(3000, late_ms=400), 0)


def test_a_delay_behind_other_messages_says_nothing_of_the_path() -> None:
    """Of a server that sends to two clients at once, the second begins behind the first."""
    sent = [message(0, down=True, late_ms=60), message(1, owd_ms=100, down=True, client="b", late_ms=60)]
    sent += [message(1000, down=True, late_ms=60), message(2000, down=True, client="b", late_ms=60)]
    assert delays_of(SERVER, sent).variation_ns == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    ("late_packets", "repairs", "varies"), [(50, 0, True), (50, 45, False), (0, 0, False)]
)
def test_packets_that_overtook_each_other_did_not_queue(
    late_packets: int, repairs: int, varies: bool
) -> None:
    one = message(0, late_ms=60, late_packets=late_packets)
    assert delays_of(SERVER, [one]).varies(one, repairs) is varies


@pytest.mark.parametrize(
    ("owd_ms", "late_ms", "full"), [(0.1, 1, False), (0.1, 9, True), (20, 9, False), (20, 30, True)]
)
def test_a_window_is_full_where_packets_wait_longer_than_they_travel(
    owd_ms: float, late_ms: float, full: bool
) -> None:
    sent = [message(at, owd_ms=owd_ms, late_ms=late_ms) for at in (0, 1000)]
    assert delays_of(SERVER, sent).fills_windows(sent[0], 0) is full


def test_a_message_behind_others_waits_from_its_first_byte_on() -> None:
    """It found the queue full and left it full: its last byte was no later than its first."""
    sent = [message(0, down=True, late_ms=300), message(2, owd_ms=300, down=True, client="b")]
    sent += [message(1000), message(1000, client="b")]
    delays = delays_of(SERVER, sent)
    assert delays.shortest_ns == {"a": 20 * MS, "b": 20 * MS}
    assert delays.fills_windows(sent[1], 0)


@pytest.mark.parametrize(
    ("excess_ms", "late_packets", "full"), [(4, 0, False), (90, 0, True), (90, 30, False)]
)
def test_a_queue_was_full_when_round_trips_were_long(excess_ms: int, late_packets: int, full: bool) -> None:
    copy = Retransmission(0, 0, 0, 0, 1448, "established", excess_ms * 1000)
    assert Delays().queue_was_full(message(0, late_packets=late_packets), 1, copy) is full
