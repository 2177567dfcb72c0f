"""Which bursts are messages, and from when to when one arrived."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path as File

import pytest

from analysis.evidence.values import Burst, Endpoint, KernelEvents, Wire
from analysis.ledger.connections import Path, Topology
from analysis.ledger.timeline import messages_of
from ztprobe.events.kinds import Direction, Hook

CLIENT, SERVER = "fl-client-0", "fl-server"
WIRE = Wire(Endpoint("10.0.0.2", 50_051), Endpoint("10.0.0.3", 40_000))
MAPS = File(__file__).parents[2] / "ebpf" / "maps.h"


def burst(first_ns: int, last_ns: int, first_seq: int, end_seq: int) -> Burst:
    """One of which no more is said than the timeline reads."""
    values = dict.fromkeys(Burst._fields, 0) | {"pod": "", "hook": Hook.ETH, "direction": Direction.TX}
    values |= {"first_ns": first_ns, "last_ns": last_ns, "first_seq": first_seq, "end_seq": end_seq}
    return Burst(**values | {"bytes": (end_seq - first_seq) % (1 << 32)})


def topology(sent: Sequence[Burst], arrived: Sequence[Burst]) -> Topology:
    """An update's bursts at both ends of the wire, without sidecars."""
    events = KernelEvents(
        bursts={
            (CLIENT, Hook.ETH, WIRE): {Direction.TX: list(sent)},
            (SERVER, Hook.ETH, WIRE): {Direction.RX: list(arrived)},
        }
    )
    addresses = {SERVER: "10.0.0.2", CLIENT: "10.0.0.3"}
    return Topology(SERVER, frozenset({7000}), (CLIENT,), addresses, [], events)


@pytest.mark.parametrize("origin", [0, (1 << 32) - 10_000], ids=["plain", "wrapping"])
def test_a_message_that_arrives_in_pieces_begins_with_the_first(origin: int) -> None:
    def at(seq: int) -> int:
        return (origin + seq) % (1 << 32)

    sent = burst(100, 900, at(600), at(60_000))
    frames = burst(60, 60, at(0), at(600))  # written before the message
    beginning, rest = burst(150, 160, at(600), at(3600)), burst(500, 950, at(3600), at(60_000))
    (found,) = messages_of(
        topology([frames, sent], [frames, beginning, rest]), Path(CLIENT, WIRE, None, None), down=False
    )
    assert (found.sent, found.one_way_ns, found.arrived.last_ns) == (sent, 50, 950)
    # Nothing came before: as the kernel saw it.
    (found,) = messages_of(topology([sent], [frames, rest]), Path(CLIENT, WIRE, None, None), down=False)
    assert found.arrived is rest


def test_kernel_and_analysis_agree_on_what_is_too_short_for_a_message() -> None:
    match = re.search(r"#define MESSAGE_BYTES (\d+)", MAPS.read_text())
    assert match is not None
    least_bytes = int(match[1])
    short, long = burst(0, 1, 0, least_bytes - 1), burst(2, 3, 0, least_bytes)
    made = topology([short, long], [])
    assert made.messages(CLIENT, Hook.ETH, WIRE, Direction.TX) == [long]
