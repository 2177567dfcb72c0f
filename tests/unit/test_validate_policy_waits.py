"""What a blocked flow costs, on hand-made events: attempts, drops and what passed in the end."""

from __future__ import annotations

import dataclasses
import struct
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from analysis.evidence.values import (
    ACK,
    SYN,
    DnsMessage,
    Drop,
    Endpoint,
    KernelEvents,
    Packet,
    Retransmission,
    Wire,
    wire_between,
)
from analysis.intervals import Segment
from analysis.ledger.connections import Path, Topology
from analysis.ledger.policy_waits import PolicyWait, policy_waits, wait_overlays
from analysis.ledger.timeline import HopMessage
from ztprobe.events.kinds import Direction

MS = 1_000_000
SERVER, CLIENT, DNS = "10.244.0.2", "10.244.0.3", "10.244.0.9"
PORT = 50_051
POLICY, OTHER = "NETFILTER_DROP", "NO_SOCKET"
ADDRESSES = {"fl-server": SERVER, "fl-client-0": CLIENT, "kube-dns": DNS}
Seen = tuple[int, Packet]  # the client's port, and what it sent or got


def packet(at_ms: float, kind: str, port: int, *, tx: bool, flags: int = 0, data: bytes = b"") -> Seen:
    direction = Direction.TX if tx else Direction.RX
    values = dict.fromkeys(Packet._fields, 0) | {
        "pod": "fl-client-0",
        "ts_ns": round(at_ms * MS),
        "kind": kind,
    }
    return port, Packet(**values | {"direction": direction, "tcp_flags": flags, "data": data})


def wire(port: int = 40_000) -> Wire:
    return wire_between(Endpoint(CLIENT, port), Endpoint(SERVER, PORT))


def syn(at_ms: float, port: int = 40_000) -> Seen:
    return packet(at_ms, "setup", port, tx=True, flags=SYN)


def syn_ack(at_ms: float, port: int = 40_000) -> Seen:
    return packet(at_ms, "setup", port, tx=False, flags=SYN | ACK)


def settings(at_ms: float, port: int = 40_000) -> Seen:
    return packet(at_ms, "payload", port, tx=False, data=bytes(20))


def question(at_ms: float, ident: int, *, tx: bool = True) -> DnsMessage:
    direction = Direction.TX if tx else Direction.RX
    data = struct.pack(">H", ident) + bytes(10)
    return DnsMessage("fl-client-0", round(at_ms * MS), direction, 5353, DNS, data)


def drop(
    at_ms: float,
    *,
    port: int = 40_000,
    to_port: int = PORT,
    flags: int = SYN,
    reason: str = POLICY,
    number: int | None = None,
) -> Drop:
    """Of the client's packet towards the server; with a number, the so-manieth full segment."""
    seq, length = (0, 0) if number is None else (1000 + 1448 * number, 1448)
    ends = (Endpoint(CLIENT, port), Endpoint(SERVER, to_port))
    return Drop("node", round(at_ms * MS), reason, "tcp", *ends, flags, seq, length, wire(port))


def dns_drop(at_ms: float) -> Drop:
    ends = (Endpoint(CLIENT, 5353), Endpoint(DNS, 53))
    return Drop("node", round(at_ms * MS), POLICY, "udp", *ends, 0, 0, 12, None)


def again(at_ms: float, state: str = "established") -> Retransmission:
    return Retransmission(round(at_ms * MS), 0, 0, 0, 0, state, 0)


def waits(
    points: Sequence[Drop | Retransmission], packets: Sequence[Seen], questions: Sequence[DnsMessage] = ()
) -> list[PolicyWait]:
    by_wire: dict[Wire, list[Packet]] = defaultdict(list)
    for port, one in packets:
        by_wire[wire(port)].append(one)
    events = KernelEvents(
        packets={("fl-client-0", key): found for key, found in by_wire.items()},
        dns=list(questions),
        drops={"node": [point for point in points if isinstance(point, Drop)]},
        retransmissions={("fl-client-0", wire()): [p for p in points if isinstance(p, Retransmission)]},
    )
    paths = [Path("fl-client-0", key, None, None) for key in by_wire]
    topology = Topology("fl-server", frozenset({PORT}), ("fl-client-0",), ADDRESSES, paths, events)
    return policy_waits(topology).get("fl-client-0", [])


def spans(found: list[PolicyWait]) -> list[tuple[float, float]]:
    return [(w.segment.start_ns / MS, w.segment.end_ns / MS) for w in found]


def test_blocked_syns_cost_from_the_first_attempt_to_the_one_that_passed() -> None:
    # The drops come a profile's 80 ms after the attempts, the answer 160 ms after the one that passes.
    packets = [syn(100), syn(1100), syn(2100), syn_ack(2260)]
    assert spans(waits([drop(180), drop(1180)], packets)) == [(100, 2100)]


def test_attempts_from_other_ports_belong_to_the_same_wait() -> None:
    packets = [syn(100), syn(1100), syn(3000, 40_001), syn_ack(3001, 40_001)]
    assert spans(waits([drop(100.1), drop(1100.1)], packets)) == [(100, 3000)]


def test_an_answer_on_an_older_connection_ends_nothing() -> None:
    older = [syn(1, 39_000), syn_ack(2, 39_000), settings(3, 39_000), settings(500, 39_000)]
    packets = [*older, syn(100), syn(1100), syn_ack(1101)]
    assert spans(waits([drop(100.1)], packets)) == [(100, 1100)]


def test_what_never_passes_lasts_for_good_towards_the_server_alone() -> None:
    ((start, end),) = spans(waits([drop(100.1)], [syn(100)]))
    assert start == 100 and end > 1e12
    assert waits([drop(100, to_port=50_052)], []) == []


def test_other_drops_are_no_policy() -> None:
    assert waits([drop(100.1, reason=OTHER)], [syn(100), syn(1100), syn_ack(1101)]) == []


def test_blocked_questions_count_where_a_connection_follows() -> None:
    asked = [question(100, 7), question(5100, 7), question(5101, 7, tx=False)]
    connected = [syn(5102), syn_ack(5103)]
    assert spans(waits([dns_drop(100.1)], connected, asked)) == [(100, 5100)]
    assert waits([dns_drop(100.1)], [], asked) == []


@pytest.fixture
def message() -> HopMessage:
    burst = SimpleNamespace(first_ns=1000 * MS, last_ns=4000 * MS, end_seq=9, tail_end_seq=0, tail_ns=0)
    path = Path("fl-client-0", wire(), None, None)
    return HopMessage(
        path=path, down=False, handed=None, sent=burst, arrived=burst, delivered=None, read=None
    )


def test_blocked_data_costs_its_own_messages_and_nothing_else(message: HopMessage) -> None:
    packets = [syn(1), syn_ack(2), settings(3)]
    found = waits([drop(500, flags=ACK), drop(700, flags=ACK)], [*packets])
    assert found[0].wire == message.path.wire
    assert "compute" not in found[0].segment.over and found[0].segment.over
    points = [drop(1200, flags=ACK), again(1600), drop(1600.1, flags=ACK), again(2400)]
    (wait,) = waits(points, packets)
    assert spans([wait]) == [(1200, 2400)]
    assert wait_overlays([wait], (None, message), 9000 * MS) == [wait.segment]
    # cut to the message
    early = PolicyWait(Segment(0, 1500 * MS, "policy_drop", wait.segment.over), wait.wire)
    (cut,) = wait_overlays([early], (message,), 9000 * MS)
    assert (cut.start_ns, cut.end_ns) == (1000 * MS, 1500 * MS)
    # another connection's
    assert wait_overlays([early._replace(wire=wire(1))], (message,), 9000 * MS) == []


def test_blocked_data_was_sent_a_paths_delay_before_the_drop(message: HopMessage) -> None:
    arrived = SimpleNamespace(**vars(message.sent) | {"first_ns": 1020 * MS, "last_ns": 4020 * MS})
    late = dataclasses.replace(message, arrived=arrived)
    (wait,) = waits([drop(1220, flags=ACK), again(2400)], [syn(1), syn_ack(2), settings(3)])
    (found,) = wait_overlays([wait], (late,), 9000 * MS)
    assert (found.start_ns, found.end_ns) == (1200 * MS, 2400 * MS)


def segment(at_ms: float, number: int) -> Drop:
    """A full segment of the client's, dropped by policy."""
    return drop(at_ms, flags=ACK, number=number)


def repair(at_ms: float, number: int, *, for_ms: float = 0) -> Retransmission:
    """... and sent again, because of what was sent at ``for_ms``."""
    return again(at_ms)._replace(seq=1000 + 1448 * number, bytes=1448, later_sent_ns=round(for_ms * MS))


LIVE = [syn(1), syn_ack(41), settings(42)]


def test_a_copy_that_was_sent_before_the_last_drop_may_have_passed() -> None:
    # New data, sent before the repair, reached the closed door when the repair was on its way already.
    points = [segment(1200, 0), repair(1290, 0), segment(1295, 7), repair(1700, 7)]
    assert spans(waits(points, LIVE)) == [(1200, 1290)]
    # ... unless it is the repair that was dropped
    points = [segment(1200, 0), repair(1290, 0), segment(1295, 0), repair(1700, 0)]
    assert spans(waits(points, LIVE)) == [(1200, 1700)]


def test_the_acknowledgement_that_causes_a_repair_is_of_something_that_passed() -> None:
    points = [segment(1200, 0), segment(1210, 1), repair(1290, 0, for_ms=1250)]
    assert spans(waits(points, LIVE)) == [(1200, 1250)]
    # ... and not before the last that was dropped (20 ms after it was sent)
    ((_, end),) = spans(waits([*points, segment(1280, 2)], LIVE))
    assert end == pytest.approx(1260, abs=0.001)


def test_data_blocked_while_the_connection_is_set_up_costs_anything(message: HopMessage) -> None:
    packets = [syn(1), syn_ack(2), settings(900)]
    (wait,) = waits([drop(500, flags=ACK), again(800)], packets)
    assert wait.segment.over == ()
    assert wait_overlays([wait], (message,), 9000 * MS) == [wait.segment]


def test_attempts_to_connect_count_whatever_was_sent_later() -> None:
    wait = PolicyWait(Segment(1, 2, "policy_drop"), None)
    assert wait_overlays([wait], (None, None), 9) == [wait.segment]
