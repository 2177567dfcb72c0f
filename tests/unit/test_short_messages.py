"""Messages as short as frames, placed by who spoke when."""

from __future__ import annotations

from typing import Any

from analysis.evidence.values import Burst, Endpoint, KernelEvents, wire_between
from analysis.ledger.levels import levels_of
from ztprobe.events.kinds import Direction, Hook

SERVER, CLIENT = Endpoint("10.0.0.1", 7000), Endpoint("10.0.0.2", 4000)
WIRE = wire_between(SERVER, CLIENT)
MS = 1_000_000
KEY_BYTES, FRAMES_BYTES, MODEL_BYTES = 166, 60, 4_800_000


class Said:
    """What went over one connection without sidecars, with 5 ms on its way."""

    def __init__(self) -> None:
        self.events = KernelEvents()
        self._seq = {True: 1, False: 1}

    def _note(
        self, table: Any, down: bool, ends_ms: tuple[float, float], length: int, first_ms: float
    ) -> None:
        sender, receiver = ("server", "client") if down else ("client", "server")
        first_seq = self._seq[down]
        for pod, direction, late_ms in ((sender, Direction.TX, 0), (receiver, Direction.RX, 5)):
            blank = dict.fromkeys(Burst._fields, 0)
            edges = {
                "first_ns": round((first_ms + late_ms) * MS),
                "last_ns": round((ends_ms[1] + late_ms) * MS),
            }
            place = {"pod": pod, "hook": Hook.ETH, "direction": direction}
            counted = {"first_seq": first_seq, "end_seq": first_seq + length, "bytes": length, "packets": 1}
            one = Burst(**blank | edges | place | counted)
            table.setdefault((pod, Hook.ETH, WIRE), {}).setdefault(direction, []).append(one)

    def long(self, first_ms: float, last_ms: float, *, down: bool) -> None:
        """A message that a burst tells; it is a turn as well."""
        self._note(self.events.bursts, down, (first_ms, last_ms), MODEL_BYTES, first_ms)
        self._note(self.events.turns, down, (first_ms, last_ms), MODEL_BYTES, last_ms)
        self._seq[down] += MODEL_BYTES

    def short(self, at_ms: float, length: int, *, down: bool) -> None:
        """A turn, placed by its last byte."""
        self._note(self.events.turns, down, (at_ms, at_ms), length, at_ms)
        self._seq[down] += length


def exchanges(said: Said) -> list[tuple[float | None, float | None]]:
    meta = {
        "pods": [
            {"name": "server", "address": SERVER.address},
            {"name": "client", "address": CLIENT.address},
        ],
        "topology": {
            "rounds_of": "server",
            "pods": ["server", "client"],
            "endpoints": [
                {"pod": "server", "container": "app", "address": "0.0.0.0", "port": 7000, "reachable": True}
            ],
            "connections": [],
            "serves": {"server": ["client"]},
            "behind_sidecar": {},
        },
    }
    level, _ = levels_of(meta, said.events)
    found = level.exchanges("client", (0, 1000 * MS))
    chain = level.chain("client", (0, 1000 * MS), open_ended=True)
    assert len(chain.arrivals_ns) == sum(up is not None for _, up in found)
    return [tuple(each and each.first_handed_ns / MS for each in one) for one in found]  # type: ignore[misc]


def test_a_key_is_a_message_and_window_updates_are_none() -> None:
    said = Said()
    said.long(10, 50, down=True)
    said.short(30, FRAMES_BYTES, down=False)  # window updates on the way
    said.short(35, 3 * FRAMES_BYTES, down=False)  # many of them, but beside the model
    said.short(56, FRAMES_BYTES, down=False)
    said.short(70, KEY_BYTES, down=False)
    said.short(90, 3 * KEY_BYTES, down=True)
    said.short(91, FRAMES_BYTES, down=True)
    said.long(300, 340, down=False)
    said.short(360, KEY_BYTES, down=True)
    said.short(380, KEY_BYTES, down=False)
    assert exchanges(said) == [(10, 70), (90, 300), (360, 380)]


def test_a_run_without_turns_has_its_long_messages() -> None:
    said = Said()
    said.long(10, 50, down=True)
    said.short(70, KEY_BYTES, down=False)
    said.long(300, 340, down=False)
    said.events.turns.clear()
    assert exchanges(said) == [(10, 300)]


def test_a_burst_ends_where_its_message_does() -> None:
    """A burst goes on through short answers, until there is something long in the other direction."""
    said = Said()
    said.long(10, 50, down=True)
    said.short(58, FRAMES_BYTES // 2, down=True)  # a ping
    said.short(70, KEY_BYTES, down=False)
    said.short(90, 3 * KEY_BYTES, down=True)
    said.long(300, 340, down=False)
    for place, by_direction in said.events.bursts.items():
        for direction, (burst,) in by_direction.items():
            if burst.first_ns < 100 * MS:
                late_ns = 90 * MS if place[0] == "server" else 95 * MS
                end_seq = burst.end_seq + FRAMES_BYTES // 2 + 3 * KEY_BYTES
                by_direction[direction] = [burst._replace(last_ns=late_ns, end_seq=end_seq)]
    assert exchanges(said) == [(10, 70), (90, 300)]


def test_who_does_not_answer_the_last_short_one_has_contributed() -> None:
    said = Said()
    said.long(10, 50, down=True)
    said.long(300, 340, down=False)
    said.short(360, KEY_BYTES, down=True)
    assert exchanges(said) == [(10, 300)]
