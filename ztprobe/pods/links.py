"""Both ends of a pod's link: its interface, found by the pod's address, and the veth's end on the host.

Names prove nothing (every CNI plugin has its own), so each end is told by what the kernel says of
it: the pod's IFLA_LINK is the other end's number, and an end is the right one if its own IFLA_LINK
and IFLA_LINK_NETNSID lead back to the pod's interface and namespace.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe.kernelnet.netlink import IPRoute, NetlinkError, netlink

__all__ = ("HostEnd", "PodInterface", "first_interface", "host_end", "pod_interface")

_VETH = "veth"
_CNI_NAME = "eth0"  # as every container runtime asks for
_LOOPBACK = 772  # include/uapi/linux/if_arp.h


@dataclass(frozen=True, kw_only=True)
class PodInterface:
    """Inside the pod."""

    name: str
    index: int
    kind: str  # veth, ipvlan, ...; empty: a device of the machine
    peer_index: int | None  # of a veth, in the other end's namespace


@dataclass(frozen=True, kw_only=True)
class HostEnd:
    """Of a pod's veth."""

    name: str
    netns: Path


def pod_interface(netns: Path, address: str) -> PodInterface | None:
    """The interface that carries an IPv4 address; None: none does. :raises OSError: no such namespace."""
    with netlink(netns) as ipr:
        for carried in ipr.get_addr(family=socket.AF_INET):
            if carried.get_attr("IFA_ADDRESS") == address or carried.get_attr("IFA_LOCAL") == address:
                (link,) = ipr.get_links(carried["index"])
                return _interface(link)
    return None


def first_interface(netns: Path) -> tuple[PodInterface, str] | None:
    """The interface of a pod whose address nobody has told yet, and its IPv4 address (empty: none yet).

    The one that a container runtime asks for counts from the moment that it is there, any other one once it
    has an address: until then its name may change.

    :returns: None: there is none yet.
    :raises OSError: no such namespace.
    """
    with netlink(netns) as ipr:
        there = [link for link in ipr.get_links() if link["ifi_type"] != _LOOPBACK]
        addresses: dict[int, str] = {}
        for carried in ipr.get_addr(family=socket.AF_INET):
            address = carried.get_attr("IFA_LOCAL") or carried.get_attr("IFA_ADDRESS")
            addresses.setdefault(carried["index"], address)
    named = [link for link in there if link.get_attr("IFLA_IFNAME") == _CNI_NAME]
    for link in named or [link for link in there if link["index"] in addresses]:
        return _interface(link), addresses.get(link["index"], "")
    return None


def _interface(link: Any) -> PodInterface:
    kind = _kind(link)
    return PodInterface(
        name=link.get_attr("IFLA_IFNAME"),
        index=link["index"],
        kind=kind,
        peer_index=link.get_attr("IFLA_LINK") if kind == _VETH else None,
    )


def host_end(netns: Path, interface: PodInterface, hosts: Sequence[Path]) -> HostEnd | None:
    """The other end of a pod's veth; None: it is no veth, or ends in none of these namespaces.

    :param hosts: where it may be, the likeliest first.
    :raises OSError: the pod's namespace is gone.
    """
    if interface.peer_index is None:
        return None
    with netns.open("rb") as pod:
        for host in hosts:
            try:
                with netlink(host) as ipr:
                    found = ipr.get_links(interface.peer_index)
                    if found and _leads_to(ipr, found[0], interface.index, pod.fileno()):
                        return HostEnd(name=found[0].get_attr("IFLA_IFNAME"), netns=host)
            except (NetlinkError, OSError):
                continue  # no link of that number, or its last process has ended
    return None


def _leads_to(ipr: IPRoute, link: Any, index: int, netns: int) -> bool:
    if _kind(link) != _VETH or link.get_attr("IFLA_LINK") != index:
        return False
    # Asking for the link gave the pod's namespace a number here, if it had none.
    number = link.get_attr("IFLA_LINK_NETNSID")
    return number is not None and ipr.get_netnsid(fd=netns)["nsid"] == number


def _kind(link: Any) -> str:
    information = link.get_attr("IFLA_LINKINFO")
    return (information.get_attr("IFLA_INFO_KIND") or "") if information is not None else ""
