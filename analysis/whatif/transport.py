"""How long TCP's windows hold a message back on a path of fixed delay, by the kernel's own rules.

Nothing here is fitted to a measurement. A message of n segments that starts with a window of w needs as
many flights as it takes until w (1 + 2 + 4 + ...) reaches n, and waits one round trip before each flight
but the first (slow start, RFC 5681; an initial window of 10, RFC 6928). After an idle phase Linux halves
the window once for every retransmission timeout (tcp_cwnd_restart), down to the initial one; the timeout is
the round trip and at least 200 ms more. BBR leaves it (tcp_slow_start_after_idle_check does nothing for it)
and paces at 2/ln 2 times the bandwidth of its best round trip until it has seen that the path gives no
more.
"""

from __future__ import annotations

import math

__all__ = ("CONGESTION_CONTROLS", "window_wait_ns")

CONGESTION_CONTROLS = ("cubic", "bbr")
_INITIAL_WINDOW = 10
_LEAST_TIMEOUT_NS = 200_000_000
_SEGMENT_BYTES = 1448  # of an MTU of 1500, with timestamps
_STARTUP_GAIN = 2 / math.log(2)
_ROUNDS = 20  # until the window at the beginning is the same each round


def window_wait_ns(
    size_bytes: int, round_trip_ns: int, *, idle_ns: int, congestion_control: str, new_connection: bool
) -> int:
    """Of one message among many equal ones: how long its sender waits for acknowledgements.

    :param idle_ns: between the end of one message and the beginning of the next.
    :param new_connection: for each message.
    """
    segments = max(1, -(-size_bytes // _SEGMENT_BYTES))
    if new_connection:
        return (_flights(segments, _INITIAL_WINDOW) - 1) * round_trip_ns
    if congestion_control == "bbr":
        largest = _INITIAL_WINDOW << (_flights(segments, _INITIAL_WINDOW) - 1)
        return round(round_trip_ns * segments / (_STARTUP_GAIN * min(largest, segments)))
    halvings = idle_ns // (round_trip_ns + _LEAST_TIMEOUT_NS)
    window = _INITIAL_WINDOW
    for _ in range(_ROUNDS):
        window = max(_INITIAL_WINDOW, (window + segments) >> min(halvings, 32))
    return (_flights(segments, window) - 1) * round_trip_ns


def _flights(segments: int, window: int) -> int:
    return max(1, math.ceil(math.log2(segments / window + 1)))
