"""HTTP/2's flow control in a capture of plain text: when a sender had no window left (RFC 9113, 5.2 and 6.9).

Frames are read one after the other from a connection's first byte on, so every byte must have
been captured, at the sender. What is closed by this account is closed by the protocol's own
rule, whatever the sender's socket or the timing of packets suggests.

Behind a sidecar the frames are plain text on loopback alone. What the wire has sent of them is
counted there, by the length that each TLS record shows (RFC 8446, 5.2).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ztprobe.errors import WorkloadError
from ztprobe.validate.observe.capture import SYN, CapturedPacket

__all__ = ("End", "Frame", "Progress", "behind_sidecar", "closed_windows", "frames", "sealed_progress")

_DATA, _SETTINGS, _WINDOW_UPDATE = 0, 4, 8
_ACK_FLAG = 1
_INITIAL_WINDOW_SIZE = 4
_DEFAULT_WINDOW_BYTES = 65_535
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_BYTES = 9
_SETTING = struct.Struct(">HI")
_WRAP = 1 << 32

End = tuple[str, int]  # address and port
Interval = tuple[int, int]
Progress = list[tuple[int, int]]  # (time in ns, bytes that have passed until then), in time order

_SEALED, _RECORD_HEADER_BYTES = 23, 5
_SEAL_BYTES = 17  # TLS 1.3: the record's true type and the tag


class Frame(NamedTuple):
    """One frame; ``ts_ns`` is when its last byte passed, ``payload`` is kept of all but DATA."""

    ts_ns: int
    kind: int
    flags: int
    stream: int
    payload_bytes: int
    payload: bytes


class _Stream:
    """The bytes of one direction of a connection in their order."""

    def __init__(self, syn: CapturedPacket) -> None:
        self._next_seq = (syn.seq + 1) % _WRAP  # a SYN counts as a byte
        self._waiting: list[CapturedPacket] = []
        self._unread = bytearray()

    def _add(self, packet: CapturedPacket) -> None:
        if len(packet.head) < packet.payload_bytes:
            raise WorkloadError(f"the capture has {len(packet.head)} of {packet.payload_bytes} bytes")
        self._waiting.append(packet)
        while (found := next(filter(self._continues, self._waiting), None)) is not None:
            self._unread += found.head[self._known_bytes(found) : found.payload_bytes]
            self._next_seq = found.end_seq
        # The others came a second time, or lie behind a hole.
        self._waiting = [p for p in self._waiting if self._known_bytes(p) >= _WRAP // 2]

    def _known_bytes(self, packet: CapturedPacket) -> int:
        return (self._next_seq - packet.seq) % _WRAP

    def _continues(self, packet: CapturedPacket) -> bool:
        return self._known_bytes(packet) < packet.payload_bytes


class _Reader(_Stream):
    """The frames of one direction of a connection."""

    def __init__(self, syn: CapturedPacket) -> None:
        super().__init__(syn)
        self._begun = False

    def feed(self, packet: CapturedPacket) -> Iterator[Frame]:
        """The frames that are whole with this packet."""
        self._add(packet)
        yield from self._whole(packet.ts_ns)

    def _whole(self, ts_ns: int) -> Iterator[Frame]:
        at = 0
        if not self._begun and self._unread.startswith(_PREFACE):  # a client's direction
            at = len(_PREFACE)
        self._begun = self._begun or bool(at) or not _PREFACE.startswith(self._unread[: len(_PREFACE)])
        while self._begun and at + _HEADER_BYTES <= len(self._unread):
            begin = at + _HEADER_BYTES
            payload_bytes = int.from_bytes(self._unread[at : at + 3], "big")
            if begin + payload_bytes > len(self._unread):
                break
            kind, flags = self._unread[at + 3 : at + 5]
            stream = int.from_bytes(self._unread[at + 5 : begin], "big") & 0x7FFFFFFF
            payload = bytes(self._unread[begin : begin + payload_bytes]) if kind != _DATA else b""
            yield Frame(ts_ns, kind, flags, stream, payload_bytes, payload)
            at = begin + payload_bytes
        del self._unread[:at]


def frames(packets: Sequence[CapturedPacket]) -> Iterator[tuple[End, End, Frame]]:
    """(from, to, frame) of every connection that begins in ``packets``, in the order in which they passed.

    :raises WorkloadError: a packet was not captured whole.
    """
    readers: dict[tuple[End, End], _Reader] = {}
    for packet in packets:
        way = ((packet.source, packet.sport), (packet.target, packet.dport))
        if packet.flags & SYN and not packet.udp:
            readers[way] = _Reader(packet)
        elif packet.payload_bytes and way in readers:
            for frame in readers[way].feed(packet):
                yield *way, frame


class _Records(_Stream):
    """How much sealed content one direction of a connection has carried."""

    def __init__(self, syn: CapturedPacket) -> None:
        super().__init__(syn)
        self.content_bytes = 0

    def feed(self, packet: CapturedPacket) -> None:
        """Account for the records that are whole with this packet."""
        self._add(packet)
        at = 0
        while at + _RECORD_HEADER_BYTES <= len(self._unread):
            end = at + _RECORD_HEADER_BYTES + int.from_bytes(self._unread[at + 3 : at + 5], "big")
            if end > len(self._unread):
                break
            if self._unread[at] == _SEALED:
                self.content_bytes += end - at - _RECORD_HEADER_BYTES - _SEAL_BYTES
            at = end
        del self._unread[:at]


def sealed_progress(packets: Sequence[CapturedPacket]) -> dict[tuple[End, End], Progress]:
    """(from, to) -> what has been sent inside TLS 1.3, of every connection that begins in ``packets``.

    :raises WorkloadError: a packet was not captured whole.
    """
    readers: dict[tuple[End, End], _Records] = {}
    found: dict[tuple[End, End], Progress] = defaultdict(list)
    for packet in packets:
        way = ((packet.source, packet.sport), (packet.target, packet.dport))
        if packet.flags & SYN and not packet.udp:
            readers[way] = _Records(packet)
        elif packet.payload_bytes and way in readers:
            readers[way].feed(packet)
            found[way].append((packet.ts_ns, readers[way].content_bytes))
    return dict(found)


def behind_sidecar(
    closed: Sequence[Interval], handed: Progress, left: Progress, since_ns: int
) -> list[Interval]:
    """Of closed windows what the wire waited for: from when a sidecar had sent what it was handed before.

    :param handed: what passed between the application and its sidecar; ``left`` what the sidecar sent.
    :param since_ns: when the sidecar held nothing.
    """
    ahead_bytes = _bytes_at(left, since_ns) - _bytes_at(handed, since_ns)
    found = []
    for closed_ns, opened_ns in closed:
        wanted_bytes = _bytes_at(handed, closed_ns) + ahead_bytes
        at = bisect_left(left, wanted_bytes, key=lambda sent: sent[1])
        if at < len(left) and left[at][0] < opened_ns:
            found.append((max(closed_ns, left[at][0]), opened_ns))
    return found


def _bytes_at(progress: Progress, at_ns: int) -> int:
    at = bisect_right(progress, at_ns, key=lambda sent: sent[0])
    return progress[at - 1][1] if at else 0


class _Window:
    """What one end may send: the connection's window, and each stream's."""

    def __init__(self) -> None:
        self._connection_bytes = self._initial_bytes = _DEFAULT_WINDOW_BYTES
        self._changes_bytes: dict[int, int] = defaultdict(int)  # by stream, beside the initial size
        self.closed: tuple[int, int] | None = None  # since when, on which stream
        self.opened: Interval | None = None

    def _left_bytes(self, stream: int) -> int:
        return min(self._connection_bytes, self._initial_bytes + self._changes_bytes[stream])

    def sent(self, frame: Frame) -> None:
        """Account for a DATA frame of this end."""
        self._connection_bytes -= frame.payload_bytes
        self._changes_bytes[frame.stream] -= frame.payload_bytes
        self.opened = None
        self.closed = (frame.ts_ns, frame.stream) if self._left_bytes(frame.stream) <= 0 else None

    def received(self, frame: Frame) -> None:
        """Account for a frame of the other end."""
        if frame.kind == _WINDOW_UPDATE:
            increment_bytes = int.from_bytes(frame.payload, "big") & 0x7FFFFFFF
            if frame.stream:
                self._changes_bytes[frame.stream] += increment_bytes
            else:
                self._connection_bytes += increment_bytes
        elif frame.kind == _SETTINGS and not frame.flags & _ACK_FLAG:
            for setting, value in _SETTING.iter_unpack(frame.payload):
                if setting == _INITIAL_WINDOW_SIZE:
                    self._initial_bytes = value
        if self.closed is not None and self._left_bytes(self.closed[1]) > 0:
            self.opened, self.closed = (self.closed[0], frame.ts_ns), None


def closed_windows(packets: Sequence[CapturedPacket]) -> dict[tuple[End, End], list[Interval]]:
    """(sender, receiver) -> from the last byte that there was a window for to the frame that opened it again.

    Only of senders at whose interface ``packets`` passed, and only where they went on afterwards.

    :raises WorkloadError: a packet was not captured whole.
    """
    windows: dict[tuple[End, End], _Window] = defaultdict(_Window)
    found: dict[tuple[End, End], list[Interval]] = defaultdict(list)
    for sender, receiver, frame in frames(packets):
        windows[receiver, sender].received(frame)
        if frame.kind == _DATA:
            mine = windows[sender, receiver]
            if mine.opened is not None:
                found[sender, receiver].append(mine.opened)
            mine.sent(frame)
    return dict(found)
