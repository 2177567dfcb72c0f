"""NFQUEUE over raw netlink: many packets a system call, payload left in the kernel.

The kernel sends one message per queued packet (linux/netfilter/nfnetlink_queue.h). In
``NFQNL_COPY_META`` mode the message is about 120 bytes, and the packet id always stands
at byte 24, because ``nfqnl_build_packet_message`` writes ``NFQA_PACKET_HDR`` first.
``recvmmsg`` fills a preallocated buffer, and verdicts leave as many messages in one
``send``. Parsing is plain ``struct``: under TCP nearly every batch is a handful of
packets, where numpy's fixed cost per call was five times the work itself (and its import
the larger part of the process's start).

Every pod has a queue of its own: the queue number says whose packet it is, and the
kernel's search for the entry of a verdict (a walk of the queue's list) stays short.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable

__all__ = ("ACCEPT", "DROP", "Packet", "QueueSocket")

DROP, ACCEPT = 0, 1  # linux/netfilter.h

# Queue number, packet id (counted per queue from 1), CLOCK_REALTIME in ns at which the
# device received it (0: the kernel gave no time).
Packet = tuple[int, int, int]

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_MSG_PACKET, _MSG_VERDICT, _MSG_CONFIG, _MSG_VERDICT_BATCH = (3 << 8 | n for n in range(4))
_CFG_CMD, _CFG_PARAMS, _CFG_QUEUE_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_CMD_BIND = 1
_COPY_META = 1
_CFG_F_GSO = 1 << 2
_ATTR_TIMESTAMP, _ATTR_VERDICT_HDR = 4, 2
_MSG_DONTWAIT = 0x40

_BATCH = 256  # packets per recvmmsg
_SLOT_BYTES = 256
_RECEIVE_BUFFER_BYTES = 64 << 20  # a message is charged with about 0.8 KB; a full buffer loses packets
_IOVEC, _MMSGHDR = struct.Struct("@PN"), struct.Struct("@PI4xPNPNi4xI4x")

_KIND = struct.Struct("<H")
_ERROR = struct.Struct("<i")
_QUEUE_AND_ID = struct.Struct(">H4xI")  # nfgenmsg.res_id, attribute header, nfqnl_msg_packet_hdr.packet_id
_STAMP_HEADER = struct.Struct("<I")
_STAMP = struct.Struct(">QQ")
_STAMP_HEADER_VALUE = 20 | _ATTR_TIMESTAMP << 16
_ID = struct.Struct(">I")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)


class QueueSocket:
    """One netlink socket, bound to several queues of the network namespace it was opened in.

    :param queues: queue numbers; ``max_packets`` is the length of each.
    :param whole_gso: take GSO packets whole; otherwise the kernel segments them first, so that
        every message is a wire-size packet.
    :raises OSError: the kernel has no nfnetlink_queue, or a queue is taken (EBUSY/EPERM).
    """

    def __init__(self, queues: Iterable[int], *, max_packets: int, whole_gso: bool) -> None:
        self.verdict_errors = 0
        self._stamp_offsets: dict[int, int] = {}  # message length -> offset of NFQA_TIMESTAMP, 0: none
        self._prefixes: dict[tuple[int, int, int], bytes] = {}
        self._buffer = bytearray(_BATCH * _SLOT_BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._iovecs = ctypes.create_string_buffer(
            b"".join(_IOVEC.pack(address + i * _SLOT_BYTES, _SLOT_BYTES) for i in range(_BATCH))
        )
        address = ctypes.addressof(self._iovecs)
        self._headers = ctypes.create_string_buffer(
            b"".join(_MMSGHDR.pack(0, 0, address + i * _IOVEC.size, 1, 0, 0, 0, 0) for i in range(_BATCH))
        )
        raw = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, raw, _NETLINK_NETFILTER)
        # Devices stamp packets only while some socket of the machine wants receive times.
        self._stamping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._stamping.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
            flags = _CFG_F_GSO if whole_gso else 0
            for number in queues:
                self._configure(number, _attribute(_CFG_CMD, struct.pack(">BBH", _CMD_BIND, 0, 0)))
                self._configure(number, _attribute(_CFG_PARAMS, struct.pack(">IB", 0, _COPY_META)))
                self._configure(number, _attribute(_CFG_QUEUE_MAXLEN, struct.pack(">I", max_packets)))
                self._configure(
                    number,
                    _attribute(_CFG_MASK, struct.pack(">I", _CFG_F_GSO))
                    + _attribute(_CFG_FLAGS, struct.pack(">I", flags)),
                )
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when packets wait."""
        return self._socket.fileno()

    def close(self) -> None:
        """Unbind: the kernel drops what is still queued, later packets bypass."""
        self._stamping.close()
        self._socket.close()

    def receive(self) -> list[Packet]:
        """Take what has been queued since, in the order of arrival, up to 256 packets."""
        count = _libc.recvmmsg(self._socket.fileno(), self._headers, _BATCH, _MSG_DONTWAIT, None)
        if count <= 0:
            error = ctypes.get_errno()
            if count < 0 and error not in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
                raise OSError(error, f"recvmmsg: {os.strerror(error)}")
            return []
        packets = []
        buffer = self._buffer
        for start in range(0, count * _SLOT_BYTES, _SLOT_BYTES):
            if _KIND.unpack_from(buffer, start + 4)[0] != _MSG_PACKET:
                self.verdict_errors += _ERROR.unpack_from(buffer, start + 16)[0] != 0
                continue
            queue, number = _QUEUE_AND_ID.unpack_from(buffer, start + 18)
            offset = start + self._stamp_offset(start)
            if _STAMP_HEADER.unpack_from(buffer, offset)[0] == _STAMP_HEADER_VALUE:
                seconds, microseconds = _STAMP.unpack_from(buffer, offset + 4)
                packets.append((queue, number, seconds * 1_000_000_000 + microseconds * 1000))
            else:
                packets.append((queue, number, 0))
        return packets

    def verdict(self, packets: Iterable[tuple[int, int]], verdict: int) -> None:
        """Give each (queue number, packet id) its verdict, in this order."""
        self._send(_MSG_VERDICT, packets, verdict)

    def accept_up_to(self, packets: Iterable[tuple[int, int]]) -> None:
        """For each (queue number, packet id), accept everything queued up to and including the id."""
        self._send(_MSG_VERDICT_BATCH, packets, ACCEPT)

    def _send(self, kind: int, packets: Iterable[tuple[int, int]], verdict: int) -> None:
        messages = [self._prefix(kind, queue, verdict) + _ID.pack(packet) for queue, packet in packets]
        self._socket.send(b"".join(messages))

    def _prefix(self, kind: int, queue: int, verdict: int) -> bytes:
        # nlmsghdr, nfgenmsg, NFQA_VERDICT_HDR: all of the message but the packet id
        key = (kind, queue, verdict)
        if key not in self._prefixes:
            self._prefixes[key] = (
                struct.pack("<IHHII", 32, kind, _NLM_F_REQUEST, 0, 0)
                + struct.pack(">BBH", 0, 0, queue)
                + struct.pack("<HH", 12, _ATTR_VERDICT_HDR)
                + struct.pack(">I", verdict)
            )
        return self._prefixes[key]

    def _stamp_offset(self, start: int) -> int:
        # The layout depends on which optional attributes a packet has, and shows in the length;
        # the caller still checks the attribute's header, and offset 0 cannot look like one.
        (length,) = struct.unpack_from("<I", self._buffer, start)
        if length not in self._stamp_offsets:
            self._stamp_offsets[length] = _find(self._buffer[start : start + min(length, _SLOT_BYTES)])
        return self._stamp_offsets[length]

    def _configure(self, queue: int, attributes: bytes) -> None:
        header = struct.pack("<IHHII", 20 + len(attributes), _MSG_CONFIG, _NLM_F_REQUEST | _NLM_F_ACK, 0, 0)
        self._socket.send(header + struct.pack(">BBH", 0, 0, queue) + attributes)
        while True:
            answer = self._socket.recv(65536)
            if _KIND.unpack_from(answer, 4)[0] == _NLMSG_ERROR:
                (error,) = _ERROR.unpack_from(answer, 16)
                if error:
                    raise OSError(-error, f"NFQUEUE {queue}: {os.strerror(-error)}")
                return


def _find(message: bytearray) -> int:
    start = 20
    while start + 24 <= len(message):
        size, kind = struct.unpack_from("<HH", message, start)
        if kind == _ATTR_TIMESTAMP:
            return start
        if size < 4:
            break
        start += (size + 3) & ~3
    return 0


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("<HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)
