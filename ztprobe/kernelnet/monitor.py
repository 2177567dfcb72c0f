"""Whether anything has changed in network namespaces: told by the kernel, not polled for.

The kernel tells every change of a link, qdisc or filter to whoever has joined the multicast group in
that namespace, and so do nftables with their rules (iptables' among them, unless they are the legacy
kind, of whose changes nobody is told). As long as nothing changes, a look costs one poll(2).
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterable
from pathlib import Path

from ztprobe.kernelnet.netns import entered

__all__ = ("NetlinkMonitor",)

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_ROUTE_GROUPS = 1 | 8  # RTMGRP_LINK, RTMGRP_TC
_NFTABLES_GROUP = 1 << 6  # NFNLGRP_NFTABLES
_READ_BYTES = 1 << 16


class NetlinkMonitor:
    """Whether anything has changed in network namespaces since the last time.

    :param rules: nftables' rules instead of links, qdiscs and filters.
    :raises OSError: a namespace cannot be entered, or the kernel refuses the group.
    """

    def __init__(self, namespaces: Iterable[Path], *, rules: bool = False) -> None:
        self._poll = select.poll()
        self._sockets: dict[int, tuple[Path, socket.socket]] = {}
        family, groups = (_NETLINK_NETFILTER, _NFTABLES_GROUP) if rules else (_NETLINK_ROUTE, _ROUTE_GROUPS)
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            for netns in dict.fromkeys(namespaces):
                with entered(netns):
                    route = socket.socket(socket.AF_NETLINK, kind, family)
                self._sockets[route.fileno()] = netns, route
                route.bind((0, groups))
                self._poll.register(route, select.POLLIN)
        except BaseException:
            self.close()
            raise

    def changed(self) -> list[Path]:
        """The namespaces where something has changed."""
        found = []
        for number, _ in self._poll.poll(0):
            netns, route = self._sockets[number]
            found.append(netns)
            _drain(route)
        return found

    def close(self) -> None:
        """Listen no longer; idempotent."""
        for _, route in self._sockets.values():
            route.close()
        self._sockets.clear()
        self._poll = select.poll()


def _drain(route: socket.socket) -> None:
    while True:
        try:
            route.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # there was more than fits
                raise
