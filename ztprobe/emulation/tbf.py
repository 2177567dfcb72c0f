"""A token bucket on the pod's own interface: the rate, before the delay.

The rate counts Ethernet frames, headers included, as tc does: 4.8 MB of TCP payload take
4.01 s at 10 Mbit/s, not 3.84 s. The bucket holds one millisecond's worth (three full
frames at least), which keeps bursts invisible; GSO packets larger than that are segmented
by the qdisc. The queue holds the bandwidth-delay product and 100 ms more
(`Profile.queue_limit_bytes`), unless the profile gives its own; cubic fills it and loses a
few packets there, as behind any router (12 of 3,300 frames in such a transfer).

Changed in place, the bucket keeps what it holds: the kernel exchanges the rate and fills the
bucket. While a schedule sets no rate it stays, with one that nothing reaches.
"""

from __future__ import annotations

import math
import struct

from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.root_qdisc import LinkSpot
from ztprobe.kernelnet.rtnetlink import attribute, attributes
from ztprobe.profile.model import FRAME_BYTES, Profile

__all__ = ("set_tbf", "tbf_options", "tbf_summary")

_UNLIMITED = 4_000_000_000, 1 << 20  # bytes a second, and of burst
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel computes, and needs no table
_PARMS = 1  # TCA_TBF_PARMS
_TICK_NS = 64
_RATE = struct.Struct("=BBHhHI")  # struct tc_ratespec


def _values(profile: Profile) -> tuple[int, int, int]:
    limit_bytes = profile.queue_limit_packets * FRAME_BYTES
    if profile.rate_mbit is None:
        return *_UNLIMITED, limit_bytes
    return round(profile.rate_mbit * 1e6 / 8), profile.burst_bytes, limit_bytes


def tbf_options(profile: Profile) -> bytes:
    """TCA_OPTIONS of a token bucket with the profile's rate."""
    rate_bytes_per_s, burst_bytes, limit_bytes = _values(profile)
    burst_ticks = math.ceil(burst_bytes * 1e9 / rate_bytes_per_s / _TICK_NS)
    body = _RATE.pack(0, _ETHERNET, 0, -1, 0, rate_bytes_per_s) + _RATE.pack(0, 0, 0, 0, 0, 0)
    return attribute(_PARMS, body + struct.pack("=3I", limit_bytes, burst_ticks, 0))


def tbf_summary(options: bytes) -> dict[str, int]:
    """What TCA_OPTIONS say, as sent or as the kernel describes them."""
    parameters = dict(attributes(options))[_PARMS]
    limit_bytes, burst_ticks = struct.unpack_from("=2I", parameters, 2 * _RATE.size)
    return {
        "rate_bytes_per_s": _RATE.unpack_from(parameters)[5],
        "limit_bytes": limit_bytes,
        "burst_ticks": burst_ticks,
    }


def set_tbf(spot: LinkSpot, profile: Profile) -> None:
    """Limit what leaves by a spot to the profile's rate, and read it back.

    Without a rate it gets one that nothing reaches, for a schedule that sets one later.

    :raises EnforcementError: the kernel holds other values than were set.
    """
    rate_bytes_per_s, burst_bytes, limit_bytes = _values(profile)
    # tc qdisc add dev eth0 root handle 5a70: tbf rate R burst B limit L
    spot.ipr.tc(
        "add",
        "tbf",
        spot.index,
        spot.handle,
        parent=spot.parent,
        rate=rate_bytes_per_s,
        burst=burst_bytes,
        limit=limit_bytes,
    )
    wanted = {"rate_bytes_per_s": rate_bytes_per_s, "limit_bytes": limit_bytes}
    found = spot.found()
    got = None
    if found is not None and found.kind == "tbf":
        parameters = found.options.get_attr("TCA_TBF_PARMS")
        got = {"rate_bytes_per_s": parameters["rate"], "limit_bytes": parameters["limit"]}
    if got != wanted:
        raise EnforcementError(f"{spot.pod}: tbf was set to {wanted} and read back as {got}")
