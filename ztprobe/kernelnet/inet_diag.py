"""TCP sockets of a network namespace, as NETLINK_SOCK_DIAG lists them (include/uapi/linux/inet_diag.h).

pyroute2 lists them as well. This is asked again and again as long as a deployment is watched, where what
pyroute2 takes for each socket was the largest part of what watching cost.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ztprobe.kernelnet.netns import entered

__all__ = ("TcpRow", "tcp_rows")

_SOCK_DIAG_BY_FAMILY, _NETLINK_SOCK_DIAG = 20, 4
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_CUT_SHORT = 0x10  # NLM_F_DUMP_INTR
_ERROR, _DONE = 2, 3
_INFO = 2  # INET_DIAG_INFO
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48x")
# Family, state, timer, retransmissions; ports, addresses; when the timer fires, queues, user, inode.
_ROW = struct.Struct(">BBBBHH16s16s12x20s")
_COUNTS = struct.Struct("=5I")
_ATTRIBUTE = struct.Struct("=HH")
_MOST_BYTES = 1 << 16  # the kernel hands over half of that at once
_MAPPED = bytes(10) + b"\xff\xff"


class TcpRow(NamedTuple):
    """One socket; an IPv6 socket that carries IPv4 has IPv4 addresses here."""

    state: int  # include/net/tcp_states.h
    local: str
    local_port: int
    remote: str
    remote_port: int
    timer: int
    retransmissions: int
    expires_ms: int  # until the timer fires
    receive_queue_bytes: int
    write_queue_bytes: int
    inode: int  # 0: nobody has accepted it yet
    info: bytes  # struct tcp_info, as much of it as this kernel has; empty: not asked for


def tcp_rows(netns: Path | None, family: int, states: int, *, with_info: bool = False) -> Iterator[TcpRow]:
    """Those of one address family that are in one of these states.

    :param netns: None: this thread's own.
    :param states: a bit for each.
    :raises OSError: the namespace is gone, this may not be asked there, or the list was cut short.
    """
    with entered(netns):
        asked = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    with asked:
        asks = 1 << _INFO - 1 if with_info else 0
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, asks, states)
        length = _HEADER.size + len(request)
        asked.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        while True:
            answer = asked.recv(_MOST_BYTES)
            at = 0
            while at < len(answer):
                length, kind, flags, _, _ = _HEADER.unpack_from(answer, at)
                if length < _HEADER.size or flags & _CUT_SHORT:
                    raise InterruptedError("the kernel's list of sockets was cut short")
                body = answer[at + _HEADER.size : at + length]
                if kind in (_ERROR, _DONE):
                    (code,) = struct.unpack_from("=i", body) if len(body) >= 4 else (0,)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield _row(family, body)
                at += length + 3 & ~3


def _row(family: int, body: bytes) -> TcpRow:
    _, state, timer, again, source_port, port, source, target, counts = _ROW.unpack_from(body)
    expires_ms, unread, unsent, _, inode = _COUNTS.unpack(counts)
    return TcpRow(
        state=state,
        local=_address(family, source),
        local_port=source_port,
        remote=_address(family, target),
        remote_port=port,
        timer=timer,
        retransmissions=again,
        expires_ms=expires_ms,
        receive_queue_bytes=unread,
        write_queue_bytes=unsent,
        inode=inode,
        info=_info(body),
    )


def _info(body: bytes) -> bytes:
    at = _ROW.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == _INFO:
            return body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return b""


@lru_cache(maxsize=4096)
def _address(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(family, packed[:4])
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return str(ipaddress.IPv6Address(packed))
