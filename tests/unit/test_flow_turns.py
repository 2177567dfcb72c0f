"""What is one message of what a connection's end said."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.flows import turns as module
from analysis.flows.turns import Turn

MS = 1_000_000
MODEL_BYTES = 4_800_000


def said(first_ms: float, last_ms: float, size: int, *, is_bulk: bool = False) -> Turn:
    speaker: Any = "server"
    listener: Any = "client"
    first_ns, last_ns = round(first_ms * MS), round(last_ms * MS)
    return Turn(
        speaker=speaker,
        listener=listener,
        asks=False,
        first_ns=first_ns,
        last_ns=last_ns,
        arrived_ns=first_ns + 1000,
        whole_ns=last_ns + 1000,
        read_ns=first_ns + 2000,
        read_whole_ns=last_ns + 2000,
        bytes=size,
        first_seq=first_ns,
        pod="server",
        key=None,  # type: ignore[arg-type]
        is_bulk=is_bulk,
    )


@pytest.mark.parametrize(
    "frames",
    [
        (94.0, 94.0),  # a window update, as the round before ended
        (77.4, 97.4),  # several, with a ping behind them
        (99.9, 99.9),  # its own headers
    ],
)
def test_a_message_begins_with_its_bytes_and_not_with_frames_ahead(frames: tuple[float, float]) -> None:
    (message,) = module._joined([said(*frames, 73), said(100, 104, MODEL_BYTES, is_bulk=True)])
    assert (message.first_ns, message.last_ns) == (100 * MS, 104 * MS)
    assert (message.arrived_ns, message.read_ns) == (100 * MS + 1000, 100 * MS + 2000)
    assert message.bytes == MODEL_BYTES + 73


def test_frames_long_before_are_of_something_else() -> None:
    assert len(module._joined([said(60, 60, 73), said(100, 104, MODEL_BYTES, is_bulk=True)])) == 2


def test_frames_behind_are_its_own() -> None:
    (message,) = module._joined([said(100, 104, MODEL_BYTES, is_bulk=True), said(110, 110, 73)])
    assert (message.first_ns, message.last_ns) == (100 * MS, 110 * MS)
