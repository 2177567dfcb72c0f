"""What a run may have lost: nothing that is ours to lose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ("MOST_LEFT_OUT", "assert_nothing_lost")

MOST_LEFT_OUT = 0.001  # of the events


def assert_nothing_lost(of: Mapping[str, Any]) -> None:
    """No event on any channel; but the kernel may have left out a few runs of programs.

    It does so where a program was running already on that CPU (an interrupt in the middle of it), and where
    a tracing program meets process 1 (docs/limits.md); ztprobe counts them and cannot keep it from that.

    :param of: a run's run.json or report.json.
    """
    channels = dict(of["loss"])
    left_out = channels.pop("recursion_missed")
    assert channels and not any(channels.values()), of["loss"]
    assert left_out <= MOST_LEFT_OUT * of["events_seen"], (left_out, of["events_seen"])
