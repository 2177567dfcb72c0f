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
        options = {"idle_ns": 0, "congestion_control": "cubic", "new_connection": False} | options
        return window_wait_ns(size_bytes, rtt_ns, **options) / rtt_ns

    assert flights(new_connection=True) == 8  # 10 (2 ** 9 - 1) segments are the first that suffice
    assert flights(idle_ns=60_000 * MS) == 8  # idle for long: the initial window again
    assert flights() == 1  # never idle: the window holds the message, and the send buffer does not
    assert 1 < flights(idle_ns=3000 * MS) < 8
    # As seen in the kernel's sockets (ss -tim): 2 / (2 / ln 2) of a round trip if the buffer held it all, and
    # with 4 MiB 1 and what a third of it and the rest take.
    assert flights(congestion_control="bbr", idle_ns=60_000 * MS) == pytest.approx(1.30, abs=0.01)
    one_mb = window_wait_ns(1_000_000, rtt_ns, idle_ns=0, congestion_control="bbr", new_connection=False)
    assert one_mb / rtt_ns == pytest.approx(np.log(2), abs=1e-6)


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
