"""How much each TCP connection has carried so far, by the kernel's account (``tcp_info`` of sock_diag(7))."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.netlink import socket_diagnosis

__all__ = ("SocketTotals", "socket_totals")

_ESTABLISHED = 1  # include/net/tcp_states.h
_INET_DIAG_INFO = 2  # include/uapi/linux/inet_diag.h; asked for by its bit


@dataclass(frozen=True, kw_only=True)
class SocketTotals:
    """Bytes since the connection was opened."""

    sent_bytes: int  # and acknowledged
    received_bytes: int


def socket_totals(netns: Path) -> dict[int, SocketTotals]:
    """Inode -> totals of a namespace's established connections.

    :raises OSError: it is gone, or cannot be entered.
    """
    found = {}
    with socket_diagnosis(netns) as diagnosis:
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in diagnosis.get_sock_stats(
                family=family,
                states=1 << _ESTABLISHED,
                protocol=socket.IPPROTO_TCP,
                extensions=1 << (_INET_DIAG_INFO - 1),
            ):
                info = one.get_attr("INET_DIAG_INFO")
                if info is not None:
                    found[int(one["idiag_inode"])] = SocketTotals(
                        sent_bytes=int(info["tcpi_bytes_acked"]),
                        received_bytes=int(info["tcpi_bytes_received"]),
                    )
    return found
