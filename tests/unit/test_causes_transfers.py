"""Causes of transfers that do not end: a message that came all the same, and packets that a link refuses."""

from __future__ import annotations

import dataclasses

import pytest

from analysis.causes.black_holes import recognise_black_holes
from analysis.causes.deadlines import recognise_deadlines
from analysis.results.drops import DroppedPacket
from tests.unit.test_causes_evidence import CLIENT, SERVER, at, bare, burst, ids, trouble, wire
from ztprobe.events.kinds import Direction, Hook


@pytest.mark.parametrize(("read_bytes", "expected"), [(13_867, ["application.slow_client"]), (900, [])])
def test_a_small_model_that_an_application_has_read_has_come(read_bytes: int, expected: list[str]) -> None:
    case = bare()
    case.events.bursts[CLIENT, Hook.ETH, wire()] = {
        Direction.RX: [burst(direction=Direction.RX, first_ns=at(0.1), last_ns=at(0.2), bytes=6_649)]
    }
    case.events.bursts[CLIENT, Hook.SOCK, wire()] = {
        Direction.RX: [burst(direction=Direction.RX, first_ns=at(0.2), last_ns=at(0.2), bytes=read_bytes)]
    }
    ended = {"event": "wait_end", "round": 9, "time_monotonic_ns": at(8), "time_unix_ns": 0}
    case = dataclasses.replace(case, run=dataclasses.replace(case.run, rounds=[*case.run.rounds, ended]))
    assert ids(recognise_deadlines(case, [trouble()])) == expected


def refused(seconds: float, payload_bytes: int, location: str) -> DroppedPacket:
    return DroppedPacket(
        ts_ns=at(seconds),
        time_unix_ns=0,
        round=9,
        pod=CLIENT,
        direction="tx",
        source=CLIENT,
        target=SERVER,
        protocol="tcp",
        source_port=4000,
        target_port=50051,
        tcp_flags="A",
        payload_bytes=payload_bytes,
        reason="NOT_SPECIFIED",
        location=location,
        head=b"",
        noise="",
        verdict="",
        policies=(),
        explanation=(),
    )


@pytest.mark.parametrize(
    ("last_s", "smallest_bytes", "location", "expected"),
    [
        (7, 1448, "__dev_forward_skb2", ["emulation.mtu_black_hole"]),
        (1, 1448, "__dev_forward_skb2", []),  # as a link that was taken down drops, too
        (7, 66, "__dev_forward_skb2", []),
        (7, 1448, "nft_do_chain", []),
    ],
)
def test_a_link_that_refuses_its_own_ends_long_packets_is_told_by_its_place(
    last_s: float, smallest_bytes: int, location: str, expected: list[str]
) -> None:
    """What the sender's own link refuses is sent again by nobody's count, and nothing came behind it."""
    drops = [refused(1 + n * (last_s - 1 or 1) / 3, 1448, location) for n in range(3)]
    drops.append(refused(1 + max(last_s - 1, 1), smallest_bytes, location))
    case = bare(dropped=tuple(drops))
    case.events.bursts[SERVER, Hook.ETH, wire()] = {
        Direction.RX: [burst(direction=Direction.RX, first_ns=at(-2), last_ns=at(-1), bytes=13_700)]
    }
    found = list(recognise_black_holes(case, [trouble()]))
    assert ids(found) == expected
    if found:
        assert "takes none so long" in found[0].summary
