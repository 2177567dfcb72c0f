"""Which bursts are messages, and from when to when one arrived."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path as File
from typing import Any, NamedTuple

import pandas as pd
import pytest

from analysis.ledger.connections import Path, Topology, eth_key
from analysis.ledger.timeline import messages_of
from ztprobe.events.tables import Direction, Hook

CLIENT, SERVER, WIRE = "fl-client-0", "fl-server", (7, 40_000)
MAPS = File(__file__).parents[2] / "ebpf" / "maps.h"


class Burst(NamedTuple):
    """What the timeline reads of one."""

    first_ns: int
    last_ns: int
    first_seq: int
    max_seq: int

    @property
    def bytes(self) -> int:
        return (self.max_seq - self.first_seq) % (1 << 32)


def topology(sent: Sequence[Burst], arrived: Sequence[Burst]) -> Topology:
    """An update's bursts at both ends of the wire, without sidecars."""
    bursts: dict[tuple[Any, ...], dict[int, list[Any]]] = {
        eth_key(CLIENT, Hook.ETH, WIRE): {Direction.TX: list(sent)},
        eth_key(SERVER, Hook.ETH, WIRE): {Direction.RX: list(arrived)},
    }
    return Topology(SERVER, frozenset({7000}), (CLIENT,), [], bursts, {}, {}, pd.DataFrame(), [])


@pytest.mark.parametrize("origin", [0, (1 << 32) - 10_000], ids=["plain", "wrapping"])
def test_a_message_that_arrives_in_pieces_begins_with_the_first(origin: int) -> None:
    def at(seq: int) -> int:
        return (origin + seq) % (1 << 32)

    sent = Burst(100, 900, at(600), at(60_000))
    frames = Burst(60, 60, at(0), at(600))  # written before the message
    beginning, rest = Burst(150, 160, at(600), at(3600)), Burst(500, 950, at(3600), at(60_000))
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
    short, long = Burst(0, 1, 0, least_bytes - 1), Burst(2, 3, 0, least_bytes)
    made = topology([short, long], [])
    assert made.messages(eth_key(CLIENT, Hook.ETH, WIRE), Direction.TX) == [long]
