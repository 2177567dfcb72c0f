"""Why last bytes are late: a queue, or a path whose delay varies. On hand-made messages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.evidence import Burst, Endpoint, wire_between
from analysis.ledger.connections import Path
from analysis.ledger.delays import Delays, delays_of
from analysis.ledger.timeline import Message
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
) -> Message:  # fmt: skip
    wire = wire_between(Endpoint("10.0.0.2", 50_051), Endpoint("10.0.0.3", 40_000))
    arrives_ms = at_ms + owd_ms
    arrived = burst(arrives_ms, arrives_ms + lasts_ms + late_ms, late_packets=late_packets)
    sent = burst(at_ms, at_ms + lasts_ms)
    path = Path(client, wire, None, None)
    return Message(path=path, down=down, handed=None, sent=sent, arrived=arrived, delivered=None, read=None)


def test_lateness_where_every_message_finds_the_same_delay_is_a_queues() -> None:
    sent = [message(at, late_ms=60) for at in (0, 1000, 2000)]
    delays = delays_of(SERVER, sent)
    assert delays.variation_ns == {"a": 0}
    assert delays.queued(sent[0], 0) and not delays.varies(sent[0], 0)


def test_unloaded_delays_that_differ_explain_it() -> None:
    sent = [message(at, owd_ms=owd, late_ms=60) for at, owd in ((0, 60), (1000, 81), (2000, 99))]
    delays = delays_of(SERVER, sent)
    assert delays.variation_ns == {"a": 39 * MS}
    assert delays.varies(sent[0], 0) and not delays.queued(sent[0], 0)
    # ... but not a lateness of another order
    assert delays.queued(message(3000, late_ms=400), 0)


def test_a_delay_behind_other_messages_says_nothing_of_the_path() -> None:
    """Of a server that sends to two clients at once, the second begins behind the first."""
    sent = [message(0, down=True, late_ms=60), message(1, owd_ms=100, down=True, client="b", late_ms=60)]
    sent += [message(1000, down=True, late_ms=60), message(2000, down=True, client="b", late_ms=60)]
    assert delays_of(SERVER, sent).variation_ns == {"a": 0, "b": 0}


@pytest.mark.parametrize(("late_packets", "repairs", "varies"), [(5, 0, True), (5, 5, False), (0, 0, False)])
def test_packets_that_overtook_each_other_did_not_queue(
    late_packets: int, repairs: int, varies: bool
) -> None:
    one = message(0, late_ms=60, late_packets=late_packets)
    assert delays_of(SERVER, [one]).varies(one, repairs) is varies


def test_a_machines_noise_is_no_queue() -> None:
    assert not Delays().queued(message(0, late_ms=1), 0)


def test_an_interface_that_carries_what_it_ever_did_is_full() -> None:
    fast, slow = message(0, lasts_ms=100), message(1000, lasts_ms=200)
    delays = delays_of(SERVER, [fast, slow])
    assert delays.saturated(fast, "a", []) and not delays.saturated(slow, "a", [])
    # Two at half the pace fill it together.
    halves = [replace(slow, down=True), replace(slow, down=True, path=replace(slow.path, client="b"))]
    delays = delays_of(SERVER, [replace(fast, down=True), *halves])
    assert delays.saturated(halves[0], SERVER, halves[1:])
    assert not delays.saturated(halves[0], SERVER, [])
    assert not Delays().saturated(fast, "a", [])
