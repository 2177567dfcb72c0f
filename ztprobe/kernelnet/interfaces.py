"""The interfaces at which a namespace's own packets pass: what has an address, and what a route leads to.

A bridge's ports are left out, because what passes one passes the bridge, too; so is what has no Ethernet
header (tunnels), which the probes do not read.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.netlink import netlink
from ztprobe.kernelnet.netns import entered

__all__ = ("Interfaces", "interfaces_of", "sent_packets")

_ETHERNET, _LOOPBACK = 1, 772  # include/uapi/linux/if_arp.h
_UP = 1
_UNICAST = 1
_COUNTS = Path("/proc/thread-self/net/dev")  # of the namespace that the thread is in
_SENT = 9  # of the columns after the name


@dataclass(frozen=True, kw_only=True)
class Interfaces:
    """Of one network namespace."""

    names: tuple[str, ...]  # where the default route leads first; without the loopback
    unreadable: tuple[str, ...]  # in use, but without an Ethernet header
    addresses: tuple[str, ...]  # of the namespace, in the order of the names; the loopback's last
    has_loopback: bool  # and it is up


def interfaces_of(netns: Path) -> Interfaces:
    """Look at a namespace. :raises OSError: it is gone, or cannot be entered."""
    with netlink(netns) as ipr:
        links = {link["index"]: link for link in ipr.get_links() if link["flags"] & _UP}
        carried: dict[int, list[str]] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in ipr.get_addr(family=family):
                address = one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS")
                if not ipaddress.ip_address(address).is_link_local:
                    carried.setdefault(one["index"], []).append(address)
        routed: dict[int, bool] = {}  # whether the default route is among them
        for route in ipr.get_routes(family=socket.AF_INET):
            if route["type"] == _UNICAST and (out := route.get_attr("RTA_OIF")) is not None:
                routed[out] = routed.get(out, False) or route["dst_len"] == 0
    used = [index for index in links if index in carried or index in routed]
    used = [i for i in used if links[i].get_attr("IFLA_MASTER") is None or i in carried]
    used.sort(key=lambda index: (not routed.get(index, False), index))
    names = {index: str(links[index].get_attr("IFLA_IFNAME")) for index in used}
    kinds = {index: links[index]["ifi_type"] for index in used}
    loopback = [index for index in used if kinds[index] == _LOOPBACK]
    ethernet = [index for index in used if kinds[index] == _ETHERNET]
    in_order = (*ethernet, *(i for i in used if i not in ethernet and i not in loopback), *loopback)
    return Interfaces(
        names=tuple(names[index] for index in ethernet),
        unreadable=tuple(names[i] for i in used if i not in ethernet and i not in loopback),
        addresses=tuple(address for index in in_order for address in carried.get(index, ())),
        has_loopback=bool(loopback),
    )


def sent_packets(netns: Path, interface: str) -> int | None:
    """How many packets an interface has sent so far; None: there is no such interface.

    :raises OSError: the namespace is gone, or cannot be entered.
    """
    with entered(netns):
        text = _COUNTS.read_text()
    for line in text.splitlines():
        name, colon, counts = line.partition(":")
        if colon and name.strip() == interface:
            return int(counts.split()[_SENT])
    return None
