"""On which pod and hop each segment of a client's round was spent.

Whose sidecar a `proxy` segment means, and which way a wire segment went, follows from its place: what
comes before the client's compute is the model's way down, what comes after it the update's way up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from analysis.report.wording import PART_NAMES

__all__ = ("HopSlice", "hop_slices", "nanoseconds")

_WIRE = ("propagation", "transmission", "retransmission", "policy_drop")
_AT_THE_CLIENT = ("compute", "dns", "tcp_handshake", "tls_handshake", "http2_setup")


class HopSlice(NamedTuple):
    """One segment on one hop; nanoseconds from the first round's start."""

    track: tuple[str, str]  # pod, hop
    name: str
    component: str
    start_ns: int
    end_ns: int


def hop_slices(client: Mapping[str, Any], start_ns: int) -> Iterator[HopSlice]:
    """A client's segments of one round of report.json. :param start_ns: the round's."""
    segments = client["segments"]
    name = client["client"]
    # Bytes have come to the client once it computes; without that, all is the way down.
    turned = next((i for i, (part, *_) in enumerate(segments) if part == "compute"), len(segments))
    for index, (part, from_s, to_s) in enumerate(segments):
        down = index < turned
        if part in _WIRE:
            track = (name, "wire, model" if down else "wire, update")
        elif part in _AT_THE_CLIENT:
            track = (name, "application")
        elif part == "proxy":
            sent = any(one in _WIRE for one, *_ in (segments[:index] if down else segments[turned:index]))
            track = (name if down == sent else "server", f"sidecar, {name}")
        elif part == "server":
            track = ("server", f"application, {name}")
        else:
            track = (name, "not explained" if part == "residual" else PART_NAMES[part])
        yield HopSlice(
            track, PART_NAMES[part], part, start_ns + nanoseconds(from_s), start_ns + nanoseconds(to_s)
        )


def nanoseconds(seconds: float) -> int:
    """Seconds of report.json, exactly."""
    return round(seconds * 1e9)
