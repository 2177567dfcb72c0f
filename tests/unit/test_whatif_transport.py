"""How long TCP's windows, its pacing and its buffers hold a message back, by the kernel's rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.ledger.model import COMPONENTS
from analysis.whatif.graph import _message_way
from analysis.whatif.transport import window_wait_ns

MS = 1_000_000


def test_windows_follow_the_kernels_rules() -> None:
    rtt_ns, size_bytes = 300 * MS, 3315 * 1448

    def flights(**options: Any) -> float:
        options = {
            "idle_ns": 0,
            "congestion_control": "cubic",
            "new_connection": False,
            "offloads": True,
        } | options
        return window_wait_ns(size_bytes, rtt_ns, **options) / rtt_ns

    assert flights(new_connection=True) == 8  # 10 (2 ** 9 - 1) segments are the first that suffice
    assert flights(idle_ns=60_000 * MS) == 8  # idle for long: the initial window again
    assert flights() == 1  # never idle: the window holds the message, and the send buffer does not
    assert 1 < flights(idle_ns=3000 * MS) < 8
    assert flights(offloads=False) == 2  # of which more stands in the buffer, so that it holds less


def test_bbr_waits_for_its_rate_and_for_the_send_buffer() -> None:
    """Runs of this project under net4, whose round trip is 300 ms, showed 390, and 654 to 663 ms."""

    def wait_ms(size_bytes: int, *, offloads: bool) -> float:
        of = {"idle_ns": 60_000 * MS, "congestion_control": "bbr", "new_connection": False}
        return window_wait_ns(size_bytes, 300 * MS, offloads=offloads, **of) / MS

    update = 3315 * 1448
    assert wait_ms(update, offloads=True) == pytest.approx(391, abs=1)  # 4 MiB hold all but 514 segments
    assert wait_ms(update, offloads=False) == pytest.approx(654, abs=1)  # all but 1,476, and a third write
    for offloads in (True, False):
        assert wait_ms(1_000_000, offloads=offloads) == pytest.approx(300 * np.log(2), abs=0.01)


def test_what_bbr_paces_waits_for_the_path() -> None:
    """In a recorded run it goes with the path; of another sender rate and queues stay."""
    chain = SimpleNamespace(transmissions=[])
    sent = SimpleNamespace(bytes=4_800_000, packets=3315)
    message = SimpleNamespace(sent=sent, one_way_ns=150 * MS)
    accounted = {"congestion_window": 10 * MS, "rate_or_queue": 230 * MS}
    chain.transmissions.append(SimpleNamespace(message=message, accounted_ns=accounted, windows_full=False))
    parts = dict.fromkeys((*COMPONENTS, "residual"), 0) | {"transmission": 660 * MS}
    paced, other = (_message_way(chain, message, parts, is_paced) for is_paced in (True, False))
    assert (paced.window_ns, other.window_ns) == (660 * MS, 430 * MS)
