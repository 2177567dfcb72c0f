"""Connected Unix sockets of a network namespace: which is the other end of which (sock_diag)."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.netlink import NetlinkError, sock_diag

__all__ = ("UnixEnd", "unix_ends")

_ESTABLISHED = 1  # include/net/tcp_states.h
_SHOW_NAME, _SHOW_PEER = 1, 4  # include/uapi/linux/unix_diag.h


@dataclass(frozen=True, kw_only=True)
class UnixEnd:
    """One end."""

    inode: int
    peer_inode: int
    name: str  # the path or abstract name that it is bound to; empty: none, as with a client's end


def unix_ends(netns: Path) -> list[UnixEnd]:
    """All of a namespace. :raises OSError: it is gone, or does not tell."""
    with sock_diag(netns) as diag:
        try:
            listed = diag.get_sock_stats(
                family=socket.AF_UNIX, states=1 << _ESTABLISHED, show=_SHOW_NAME | _SHOW_PEER
            )
            return [
                UnixEnd(
                    inode=int(each["udiag_ino"]),
                    peer_inode=int(peer),
                    name=_name(each.get_attr("UNIX_DIAG_NAME")),
                )
                for each in listed
                if (peer := each.get_attr("UNIX_DIAG_PEER"))
            ]
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error


def _name(said: str | bytes | None) -> str:
    text = said.decode(errors="replace") if isinstance(said, bytes) else said or ""
    return text.replace("\0", "@", 1) if text.startswith("\0") else text
