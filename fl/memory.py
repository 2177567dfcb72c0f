"""What the C library does with memory that was freed: give it back at once, or keep all of it.

Both are for a whole process, and do nothing with another C library than glibc.
"""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ("give_back", "keep")

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The most that glibc takes (half of HEAP_MAX_SIZE); no array of ours is as long.
_MOST_BYTES = 32 << 20


def give_back() -> None:
    """Hold as little as possible: for processes of which there are hundreds.

    glibc keeps what was freed, in an arena for each of gRPC's threads: with messages of 4.8 MB that was
    49 MB a client instead of 30. Blocks from 1 MB on are mapped one by one, and so returned when freed.
    """
    _set((_M_MMAP_THRESHOLD, 1 << 20), (_M_ARENA_MAX, 1))


def keep() -> None:
    """Hold what was held once: for who makes models of updates, which are as large in every round.

    Otherwise their memory goes back and is asked for again in every round: about 2,000 page faults for the
    mean of three updates, half of its time, and in a virtual machine whose host has to find each page ten
    times as much.
    """
    _set((_M_MMAP_THRESHOLD, _MOST_BYTES), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))


def _set(*options: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for option, value in options:
            libc.mallopt(option, value)
