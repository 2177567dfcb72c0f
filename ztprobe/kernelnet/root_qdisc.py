"""The root qdisc of a pod's interface: seen, refused when it is someone else's, removed when it is ours.

Ours carry the handle 5a70: ("Zp"). A fresh veth has no qdisc of its own (handle 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.netlink import IPRoute

__all__ = (
    "HANDLE",
    "ROOT",
    "LinkSpot",
    "RootQdisc",
    "qdisc_at",
    "refuse_foreign",
    "remove_ours",
    "root_qdisc",
)

HANDLE = 0x5A70_0000
ROOT = 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True)
class LinkSpot:
    """Where a qdisc of ours is to stand: at a link's root unless told otherwise."""

    ipr: IPRoute
    index: int  # of the link
    pod: str  # for messages
    parent: int = ROOT
    handle: int = HANDLE

    def found(self) -> RootQdisc | None:
        """What stands there now; None: nothing."""
        return qdisc_at(self.ipr, self.index, self.parent)


@dataclass(frozen=True, kw_only=True)
class RootQdisc:
    """What stands at the root of a link's egress."""

    kind: str
    handle: int
    options: Any  # as pyroute2 decodes TCA_OPTIONS
    packets: int
    drops: int
    overlimits: int


def root_qdisc(ipr: IPRoute, index: int) -> RootQdisc | None:
    """The root qdisc of link ``index``; None: the kernel shows none."""
    return qdisc_at(ipr, index, ROOT)


def qdisc_at(ipr: IPRoute, index: int, parent: int) -> RootQdisc | None:
    """The qdisc of link ``index`` below ``parent`` (a class, or `ROOT`); None: there is none."""
    # tc -s qdisc show dev eth0 parent 5a71:2
    for message in ipr.tc("dump", index=index):
        if message["index"] == index and message["parent"] == parent:
            stats = message.get_attr("TCA_STATS") or {}
            return RootQdisc(
                kind=message.get_attr("TCA_KIND"),
                handle=message["handle"],
                options=message.get_attr("TCA_OPTIONS"),
                packets=stats.get("packets", 0),
                drops=stats.get("drop", 0),
                overlimits=stats.get("overlimits", 0),
            )
    return None


def refuse_foreign(ipr: IPRoute, index: int, where: str) -> None:
    """:raises EnforcementError: somebody has put a qdisc there (a shaped interface, or a leftover)."""
    found = root_qdisc(ipr, index)
    if found is not None and found.handle:
        raise EnforcementError(
            f"{where}: its interface already has the qdisc {found.kind} {found.handle >> 16:x}:; "
            "remove it (tc qdisc del dev ... root) or leave that pod out"
        )


def remove_ours(ipr: IPRoute, index: int, handle: int = HANDLE) -> bool:
    """Remove the root qdisc and what stands below it if it is ours; says whether it was. Idempotent."""
    found = root_qdisc(ipr, index)
    if found is None or found.handle != handle:
        return False
    ipr.tc("del", index=index, handle=handle, root=True)
    return True
