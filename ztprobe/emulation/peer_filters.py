"""Which traffic of a device a lease with ``--to`` shapes: a class for the peers' addresses, and its filters.

The root is an HTB that shapes nothing by itself: what no filter picks passes by in its direct queue. While
the lease lasts, filters come and go with the peers' addresses; what the class holds stays in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence

from ztprobe.emulation.attach_points import LEASE_HANDLE
from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.netlink import IPRoute, NetlinkError, netlink
from ztprobe.kernelnet.rtnetlink import links, u32_keys
from ztprobe.leases.records import Point

__all__ = ("PEERS_CLASS", "change_peers", "classify")

PEERS_CLASS = LEASE_HANDLE | 2
_UNSHAPED_BYTES_PER_S = 4_000_000_000
_ETH_P_IP = 0x0800
_OFFSET = {"egress": 16, "ingress": 12}  # of the peer's address in the IPv4 header


def classify(ipr: IPRoute, index: int, point: Point, addresses: Sequence[str]) -> None:
    """Make the root and the class of a link, and lead traffic with these addresses into it.

    :raises EnforcementError: the kernel has other filters than were set.
    :raises NetlinkError: the kernel refuses.
    """
    # tc qdisc add dev eth0 root handle 5a71: htb default 0
    ipr.tc("add", "htb", index, LEASE_HANDLE, default=0)
    # tc class add dev eth0 parent 5a71: classid 5a71:2 htb rate 32gbit quantum 60000
    ipr.tc(
        "add-class",
        "htb",
        index,
        PEERS_CLASS,
        parent=LEASE_HANDLE,
        rate=_UNSHAPED_BYTES_PER_S,
        burst=1 << 20,
        cburst=1 << 20,
        quantum=60_000,
    )
    _add(ipr, index, point, addresses)
    _check(index, point, addresses)


def change_peers(point: Point, addresses: Collection[str]) -> None:
    """Lead traffic with these addresses into the class of a device, and no other.

    :raises EnforcementError: the kernel refuses, or has other filters than were set.
    :raises OSError: the device is gone.
    """
    wanted = {ipaddress.IPv4Address(address).packed: address for address in addresses}
    there_already: set[bytes] = set()
    with links(point.netns) as there:
        index = there.index(point.device)
        for found in there.described("filter", index, LEASE_HANDLE):
            for offset, _, value in u32_keys(found):
                if offset != _OFFSET[point.direction]:
                    continue
                if value not in wanted or value in there_already:
                    there.remove_filter(index, found)
                there_already.add(value)
    missing = [address for packed, address in wanted.items() if packed not in there_already]
    try:
        with netlink(point.netns) as ipr:
            _add(ipr, index, point, missing)
    except NetlinkError as error:
        raise EnforcementError(f"{point.pod}: the kernel refused a filter for --to: {error}") from error
    _check(index, point, list(wanted.values()))


def _add(ipr: IPRoute, index: int, point: Point, addresses: Sequence[str]) -> None:
    for address in addresses:
        # tc filter add dev eth0 parent 5a71: protocol ip prio 1 u32 match ip dst ADDRESS flowid 5a71:2
        value = int(ipaddress.IPv4Address(address))
        ipr.tc(
            "add-filter",
            "u32",
            index,
            parent=LEASE_HANDLE,
            prio=1,
            protocol=_ETH_P_IP,
            target=PEERS_CLASS,
            keys=[f"0x{value:08x}/0xffffffff+{_OFFSET[point.direction]}"],
        )


def _check(index: int, point: Point, addresses: Sequence[str]) -> None:
    wanted = sorted(ipaddress.IPv4Address(address).packed for address in addresses)
    with links(point.netns) as there:
        keys = there.u32_matches(index, LEASE_HANDLE)
    got = sorted(value for offset, _, value in keys if offset == _OFFSET[point.direction])
    if got != wanted:
        raise EnforcementError(
            f"{point.pod}: {len(wanted)} filters were set and {len(got)} read back, or for other addresses"
        )
