"""How long TCP's windows hold a message back on a path of fixed delay, by the kernel's own rules.

Nothing here is fitted to a measurement. A message of n segments that starts with a window of w needs as
many flights as it takes until w (1 + 2 + 4 + ...) reaches n, and waits one round trip before each flight
but the first (slow start, RFC 5681; an initial window of 10, RFC 6928). After an idle phase Linux halves
the window once for every retransmission timeout (tcp_cwnd_restart), down to the initial one; the timeout is
the round trip and at least 200 ms more.

BBR leaves the window (tcp_slow_start_after_idle_check does nothing for it) and paces at 2/ln 2 times the
bandwidth of its best round trip until it has seen that the path gives no more, which one message after
another never shows. Its first message doubles its rate every round trip, so that its last one carried half
of it, and that is the bandwidth (bbr_update_bw leaves what was limited by the application unless it is more).

No more is on its way than the send buffer holds, tcp_wmem's 4 MiB at most. There a segment of 1448 bytes
takes 1497 where segmentation is offloaded, and 2280 where each is a packet of its own: the kernel counts its
own structures as well (both as ss -tim shows them). Of a larger message the next part is written once a third
of the buffer is free again (sk_stream_is_writeable), which is twice a round trip: the third time it takes the
acknowledgements of what was written the first time.
"""

from __future__ import annotations

import math

__all__ = ("CONGESTION_CONTROLS", "window_wait_ns")

CONGESTION_CONTROLS = ("cubic", "bbr")
_INITIAL_WINDOW = 10
_LEAST_TIMEOUT_NS = 200_000_000
_SEGMENT_BYTES = 1448  # of an MTU of 1500, with timestamps
_STARTUP_GAIN = 2 / math.log(2)
_BUFFER_BYTES = 4 << 20
_OFFLOADED_BYTES = 1497  # of a segment in the buffer
_PACKET_BYTES = 2280  # of one that is a packet of its own
_ROUNDS = 20  # until the window at the beginning is the same each round


def window_wait_ns(
    size_bytes: int,
    round_trip_ns: int,
    *,
    idle_ns: int,
    congestion_control: str,
    new_connection: bool,
    offloads: bool,
) -> int:
    """Of one message among many equal ones: how long its sender waits for acknowledgements.

    :param idle_ns: between the end of one message and the beginning of the next.
    :param new_connection: for each message.
    :param offloads: its sender leaves it to the interface to cut what it sends into packets.
    """
    segments = max(1, -(-size_bytes // _SEGMENT_BYTES))
    buffered = _BUFFER_BYTES // (_OFFLOADED_BYTES if offloads else _PACKET_BYTES)
    if new_connection:
        return (_flights(segments, _INITIAL_WINDOW, buffered) - 1) * round_trip_ns
    if congestion_control == "bbr":
        return round(_paced(segments, buffered) * round_trip_ns)
    halvings = idle_ns // (round_trip_ns + _LEAST_TIMEOUT_NS)
    window = _INITIAL_WINDOW
    for _ in range(_ROUNDS):
        window = max(_INITIAL_WINDOW, (window + segments) >> min(halvings, 32))
    return (_flights(segments, window, buffered) - 1) * round_trip_ns


def _flights(segments: int, window: int, buffered: int) -> int:
    third = buffered // 3 + 1
    sent = flights = 0
    while sent < segments:
        written = buffered + sent // third * third  # all that was sent has been acknowledged
        sent = min(sent + window, written)
        window, flights = 2 * window, flights + 1
    return flights


def _paced(segments: int, buffered: int) -> float:
    """Round trips from a message's first segment to its last, at the rate that BBR has seen before."""
    a_round_trip = _STARTUP_GAIN * max(segments / 2, min(segments, _INITIAL_WINDOW))
    if segments <= buffered:
        return segments / a_round_trip
    third, rest = buffered // 3 + 1, segments - buffered
    writes = -(-rest // third)
    round_trips = -(-writes // 2)
    acknowledged = third if writes % 2 else 2 * third  # in the last of these, before the last write
    return round_trips + (acknowledged + rest - (writes - 1) * third) / a_round_trip
