"""Where a profile acts on a pod: planned without touching anything, and the way to an IFB device.

A qdisc shapes what leaves a device. A pod's packets leave its own interface (egress), and those
towards it leave the host end of its veth (ingress): the two places of ``--at auto``. Both lie
after the sender's and before the receiver's tc programs, so a trace sees the delay as the
network's. The other end of the same veth serves as well, through an IFB device to which everything
that comes in there is redirected:

====== ================================== ==================================
``at`` egress of the pod                  ingress of the pod
====== ================================== ==================================
pod    its interface                      IFB in its namespace, from its interface
host   IFB on the node, from the host end the host end of its veth
auto   its interface                      the host end; where none is known, IFB in its namespace
====== ================================== ==================================

Ingress inside the pod is the one place that lies after the receiver's tc ingress: filters there
have run (and see a packet once: what comes back from an IFB device passes them by) before the
packet is held, so that a trace of that pod would take the delay for the receiver's. `auto` takes
it only if there is no other. Redirecting is a filter of our own at a priority after everyone
else's; those that are there stay as they are and come first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.clsact import INGRESS, add_clsact, filters, has_clsact, remove_if_empty
from ztprobe.kernelnet.netlink import IPRoute, NetlinkError, netlink
from ztprobe.kernelnet.netns import inode
from ztprobe.kernelnet.root_qdisc import HANDLE
from ztprobe.kernelnet.rtnetlink import handle_text, links
from ztprobe.leases.qdisc_snapshot import refusal, take_snapshot
from ztprobe.leases.records import Point
from ztprobe.pods.model import Pod

__all__ = (
    "LEASE_HANDLE",
    "add_ifb",
    "own_profile",
    "plan_points",
    "redirect",
    "redirected",
    "remove_redirect",
)

LEASE_HANDLE = 0x5A71_0000
_QDISCS = ("netem", "tbf", "nfqueue+tbf")
_PRIORITY = 0x5A71  # of the redirect; the probes have 1
_ETH_P_ALL = 0x0003
_INFO = _PRIORITY << 16 | 0x0300  # with the protocol in network order


def plan_points(
    pods: Sequence[Pod],
    directions: Sequence[str],
    backend: str,
    *,
    replace: bool,
    at: str = "auto",
    lease_id: str = "",
    first: int = 0,
) -> tuple[Point, ...]:
    """The devices that will be shaped; changes nothing.

    :param replace: take somebody else's qdisc away (it is kept, and put back in the end).
    :param at: ``pod`` or ``host``, an end of the veth, or ``auto``.
    :param lease_id: names the IFB devices.
    :param first: their first number.
    :raises EnforcementError: an interface carries something that must not or cannot be replaced, or
        the place cannot be reached.
    """
    if at != "auto" and "nfqueue" in backend:
        raise EnforcementError(
            f"--at {at} is a place for qdiscs (netem, tbf); the delay line stands where the node forwards:"
            " leave --at out"
        )
    if backend not in _QDISCS:
        return ()
    points: list[Point] = []
    for pod in pods:
        for direction in directions:
            ifb = f"ztp{lease_id}-{first + len(points)}"
            points.append(_planned(pod, direction, at, ifb, replace=replace))
    return tuple(points)


def _planned(pod: Pod, direction: str, at: str, ifb: str, *, replace: bool) -> Point:
    inside, outside = (pod.netns, pod.interface), (pod.node_netns, pod.host_interface)
    try:
        if direction == "egress":
            if at == "host":
                _refuse_own_profile(pod)
                return _through_ifb(pod, direction, outside, ifb)
            return _at_root(pod, direction, inside, replace=replace)
        if at == "pod" or (at == "auto" and not _exists(*outside)):
            return _through_ifb(pod, direction, inside, ifb)
        return _at_root(pod, direction, outside, replace=replace)
    except (OSError, NetlinkError) as error:
        if at == "host" and not _exists(*outside):
            raise EnforcementError(
                f"{pod}: the host end of its interface is not known on this node: take --at pod"
            ) from error
        raise EnforcementError(f"{pod}: its network cannot be entered: {error}") from error


def _exists(netns: Path, interface: str) -> bool:
    try:
        with links(netns) as there:
            there.index(interface)
    except OSError:
        return False
    return True


def _at_root(pod: Pod, direction: str, place: tuple[Path, str], *, replace: bool) -> Point:
    netns, interface = place
    point = Point(
        pod=str(pod), direction=direction, netns=netns, netns_inode=inode(netns), interface=interface
    )
    with links(netns) as there:
        index = there.index(interface)
        root = there.root(index)
        if root is None:
            return point
        what = f"{root.kind} {handle_text(root.handle)}"
        if root.handle == HANDLE:
            raise EnforcementError(f"{pod}: {own_profile('its run')}")
        if root.handle == LEASE_HANDLE:
            raise _unaccounted(pod, netns, interface, f"tc qdisc del dev {interface} root")
        if not replace:
            raise EnforcementError(
                f"{pod}: {interface} already has the qdisc {what}; --replace takes it away for the"
                " time and puts it back"
            )
        try:
            saved = take_snapshot(there, index)
            reason = refusal(saved, _mtu_bytes(netns, interface)) if saved is not None else None
        except OSError as error:
            reason = str(error)
    if reason is not None:
        raise EnforcementError(
            f"{pod}: {interface} has the qdisc {what}, which could not be put back as it was ({reason}):"
            " remove it yourself"
        )
    return dataclasses.replace(point, saved=saved)


def _mtu_bytes(netns: Path, interface: str) -> int:
    with netlink(netns) as ipr:
        (link,) = ipr.get_links(ifname=interface)
        return int(link.get_attr("IFLA_MTU"))


def _through_ifb(pod: Pod, direction: str, place: tuple[Path, str], ifb: str) -> Point:
    netns, interface = place
    with netlink(netns) as ipr:
        found = ipr.link_lookup(ifname=interface)
        if not found:
            raise OSError(f"there is no interface {interface}")
        made = not has_clsact(ipr, found[0])
        if not made and _redirects(ipr, found[0]):
            raise _unaccounted(
                pod, netns, interface, f"tc filter del dev {interface} ingress pref {_PRIORITY}"
            )
    return Point(
        pod=str(pod),
        direction=direction,
        netns=netns,
        netns_inode=inode(netns),
        interface=interface,
        ifb=ifb,
        made_clsact=made,
    )


def _unaccounted(pod: Pod, netns: Path, interface: str, undo: str) -> EnforcementError:
    # The leases that are written down here have been compared before.
    return EnforcementError(
        f"{pod}: {interface} has a profile that no lease in {paths.STATE_DIR} accounts for: another ztprobe"
        f" keeps it, or its record was lost; what takes it away: nsenter --net={netns} {undo}"
    )


def _refuse_own_profile(pod: Pod) -> None:
    with links(pod.netns) as there:
        root = there.root(there.index(pod.interface))
    if root is not None and root.handle == HANDLE:
        raise EnforcementError(f"{pod}: {own_profile('its run')}")


def own_profile(run: str) -> str:
    """What to say of a pod that its run has put under a profile."""
    return f"{run} has it under a profile of its own already (start the run with net0 instead)"


def add_ifb(point: Point) -> None:
    """Make the point's IFB device, with nothing led to it yet; nothing to do if it needs none.

    :raises EnforcementError: the kernel refuses.
    """
    if point.ifb is None:
        return
    try:
        with netlink(point.netns) as ipr:
            # ip link add ztpID-N up type ifb
            ipr.link("add", ifname=point.ifb, kind="ifb", state="up")
    except NetlinkError as error:
        raise EnforcementError(
            f"{point.pod}: this kernel refuses an IFB device ({error}); CONFIG_IFB makes --at work"
        ) from error


def redirect(ipr: IPRoute, point: Point) -> None:
    """Lead what comes in by the point's interface through its IFB device, if it has one.

    :raises EnforcementError: the kernel refuses.
    """
    if point.ifb is None:
        return
    try:
        (interface,) = ipr.link_lookup(ifname=point.interface)
        (ifb,) = ipr.link_lookup(ifname=point.ifb)
        add_clsact(ipr, interface)
        # tc filter add dev eth0 ingress prio 23153 protocol all u32 match u32 0 0
        #   action mirred egress redirect dev ztpID-N
        ipr.tc(
            "add-filter",
            "u32",
            interface,
            parent=INGRESS,
            prio=_PRIORITY,
            protocol=_ETH_P_ALL,
            target=0,
            keys=["0x0/0x0+0"],
            action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": ifb},
        )
    except (NetlinkError, ValueError) as error:
        raise EnforcementError(
            f"{point.pod}: what comes in by {point.interface} cannot be redirected to {point.ifb}: {error}"
        ) from error


def redirected(ipr: IPRoute, point: Point) -> bool:
    """Whether the redirect to the point's IFB device stands."""
    found = ipr.link_lookup(ifname=point.interface)
    return bool(found and _redirects(ipr, found[0]))


def remove_redirect(ipr: IPRoute, point: Point) -> bool:
    """Take redirect, IFB device and our clsact away, whatever is there of them; says if anything was."""
    removed = False
    for interface in ipr.link_lookup(ifname=point.interface):
        try:
            if _redirects(ipr, interface):
                # tc filter del dev eth0 ingress prio 23153 protocol all
                ipr.tc("del-filter", index=interface, parent=INGRESS, info=_INFO)
                removed = True
            if point.made_clsact:
                remove_if_empty(ipr, interface)
        except NetlinkError:
            if ipr.link_lookup(ifname=point.interface):
                raise
            # It has just gone with its pod; the IFB device has not.
    for ifb in ipr.link_lookup(ifname=point.ifb):
        ipr.link("del", index=ifb)
        removed = True
    return removed


def _redirects(ipr: IPRoute, interface: int) -> list[Any]:
    return [message for message in filters(ipr, interface, INGRESS) if message["info"] == _INFO]
