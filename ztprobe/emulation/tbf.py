"""A token bucket on the pod's own interface: the rate, before the delay.

The rate counts Ethernet frames, headers included, as tc does: 4.8 MB of TCP payload take
4.01 s at 10 Mbit/s, not 3.84 s. The bucket holds one millisecond's worth (three full
frames at least), which keeps bursts invisible; GSO packets larger than that are segmented
by the qdisc. The queue holds the bandwidth-delay product and 100 ms more
(`Profile.queue_limit_bytes`), unless the profile gives its own; cubic fills it and loses a
few packets there, as behind any router (12 of 3,300 frames in such a transfer).
"""

from __future__ import annotations

from ztprobe.emulation.qdisc import HANDLE, ROOT, qdisc_at
from ztprobe.errors import EnforcementError
from ztprobe.netlink import IPRoute
from ztprobe.profile import FRAME_BYTES, Profile

__all__ = ("set_tbf",)


def set_tbf(
    ipr: IPRoute,
    index: int,
    profile: Profile,
    where: str,
    *,
    parent: int = ROOT,
    handle: int = HANDLE,
) -> None:
    """Limit link ``index`` to the profile's rate, at its root unless told otherwise, and read it back.

    :param where: the pod, for messages.
    :raises EnforcementError: the kernel holds other values than were set.
    """
    if profile.rate_mbit is None:
        raise ValueError(f"{profile.name} has no rate")
    rate_bytes_per_s = round(profile.rate_mbit * 1e6 / 8)
    limit_bytes = profile.queue_limit_packets * FRAME_BYTES
    # tc qdisc add dev eth0 root handle 5a70: tbf rate R burst B limit L
    ipr.tc(
        "add",
        "tbf",
        index,
        handle,
        parent=parent,
        rate=rate_bytes_per_s,
        burst=profile.burst_bytes,
        limit=limit_bytes,
    )
    wanted = {"rate_bytes_per_s": rate_bytes_per_s, "limit_bytes": limit_bytes}
    found = qdisc_at(ipr, index, parent)
    got = None
    if found is not None and found.kind == "tbf":
        parameters = found.options.get_attr("TCA_TBF_PARMS")
        got = {"rate_bytes_per_s": parameters["rate"], "limit_bytes": parameters["limit"]}
    if got != wanted:
        raise EnforcementError(f"{where}: tbf was set to {wanted} and read back as {got}")
