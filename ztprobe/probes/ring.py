"""Read a BPF ring buffer in batches, without a call per event.

The kernel maps a ring buffer as one page for the consumer's position, one for the
producer's, and the data twice in a row, so that no record is ever cut
(kernel/bpf/ringbuf.c). All records of a ring have one size here, hence a drain is a
strided numpy view, one copy and one store: about 0.1 us an event where a callback
costs 1.5 us and loses most events of a burst. Of the second time only the first page is
mapped, for the record that begins before the end and ends behind it: every page mapped
counts as this process's memory.
"""

from __future__ import annotations

import mmap

import numpy as np

__all__ = ("Ring",)

_PAGE = mmap.PAGESIZE
_BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT: reserved, not yet submitted
_DISCARD = 1 << 30
_HEADER_BYTES = 8


class Ring:
    """The consumer's end of one ring buffer whose records all have the type ``dtype``.

    :param fd: file descriptor of the map.
    :param data_bytes: the ring's size (its ``max_entries``).
    """

    def __init__(self, fd: int, data_bytes: int, dtype: np.dtype[np.void]) -> None:
        self.dtype = dtype
        self.data_bytes = data_bytes
        self._stride = _HEADER_BYTES + (dtype.itemsize + 7) // 8 * 8
        self._consumer = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        length = _PAGE + data_bytes + _PAGE
        self._producer = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        # numpy moves all 8 bytes of a position at once; struct.pack_into does not (it even clears them
        # first), and a kernel that looks in between takes the ring for full.
        self._consumed = np.ndarray(1, np.uint64, self._consumer)
        self._produced = np.ndarray(1, np.uint64, self._producer)
        self.highest_fill = 0.0

    def drain(self) -> np.ndarray:
        """Every record submitted so far (a copy), in order; the space is given back to the kernel."""
        consumed, produced = int(self._consumed[0]), int(self._produced[0])
        self.highest_fill = max(self.highest_fill, (produced - consumed) / self.data_bytes)
        to_end = -(-(self.data_bytes - consumed % self.data_bytes) // self._stride)
        rows = self._take(min((produced - consumed) // self._stride, to_end))
        if int(self._consumed[0]) == consumed + to_end * self._stride:
            return np.concatenate((rows, self._take((produced - int(self._consumed[0])) // self._stride)))
        return rows

    def _take(self, count: int) -> np.ndarray:
        """Up to so many records, none of which begins behind the end of the data."""
        consumed = int(self._consumed[0])
        if count == 0:
            return np.empty(0, self.dtype)
        start = _PAGE + consumed % self.data_bytes
        headers = np.ndarray(count, "<u4", self._producer, start, (self._stride,))
        busy = np.flatnonzero(headers & _BUSY)
        if busy.size:
            count = int(busy[0])
            headers = headers[:count]
        rows: np.ndarray = np.ndarray(
            count, self.dtype, self._producer, start + _HEADER_BYTES, (self._stride,)
        ).copy()
        rows = rows[(headers & _DISCARD) == 0]
        del headers
        self._consumed[0] = consumed + count * self._stride
        return rows

    def close(self) -> None:
        """Unmap."""
        del self._consumed, self._produced
        self._consumer.close()
        self._producer.close()
