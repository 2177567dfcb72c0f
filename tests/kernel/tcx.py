"""What somebody else can do to programs on a device: find them by asking the kernel, and detach them."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from pathlib import Path

from ztprobe.kernelnet.netns import entered
from ztprobe.preflight.bpf import TCX_EGRESS, TCX_INGRESS

__all__ = ("attached", "detach")

_PROG_QUERY, _LINK_GET_FD_BY_ID, _LINK_DETACH = 16, 30, 34  # enum bpf_cmd
_SYSCALL = 321  # bpf(2) on x86-64
_MOST = 8
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(_SYSCALL, command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def attached(netns: Path, device: str, kind: int) -> list[int]:
    """Ids of the links there; none where the kernel has no tcx."""
    programs, links = (ctypes.c_uint32 * _MOST)(), (ctypes.c_uint32 * _MOST)()
    with entered(netns):
        head = struct.pack("=IIII", socket.if_nametoindex(device), kind, 0, 0)
        place = struct.pack(
            "=QIIQQQQ", ctypes.addressof(programs), _MOST, 0, 0, ctypes.addressof(links), 0, 0
        )
        query = ctypes.create_string_buffer(head + place, 72)
        try:
            _bpf(_PROG_QUERY, query)
        except OSError:
            return []
    return [link for link in links if link]


def detach(netns: Path, device: str, kind: int) -> None:
    """Detach all of them."""
    for link in attached(netns, device, kind):
        fd = _bpf(_LINK_GET_FD_BY_ID, ctypes.create_string_buffer(struct.pack("=I", link), 32))
        try:
            _bpf(_LINK_DETACH, ctypes.create_string_buffer(struct.pack("=I", fd), 32))
        finally:
            os.close(fd)


if __name__ == "__main__":  # NETNS DEVICE ingress|egress
    detach(Path(sys.argv[1]), sys.argv[2], TCX_EGRESS if sys.argv[3] == "egress" else TCX_INGRESS)
