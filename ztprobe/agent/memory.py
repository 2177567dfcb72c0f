"""What an agent holds: in its process, and in the kernel on its behalf."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ("held", "hold_little", "together", "trim")

# <malloc.h>
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_MAPPED_BYTES = 256 << 10

_OWN = Path("/proc/self")
_MAPPING = re.compile("[0-9a-f]+-[0-9a-f]+ ")  # proc(5): a mapping's first line


def held(process: Path = _OWN) -> dict[str, int]:
    """``resident_bytes`` of a process, and ``kernel_maps_bytes`` of the BPF maps that it has open.

    Ring buffers that are mapped into the process are the kernel's, and are counted there alone.
    """
    resident_kib = sum(mapping.resident_kib for mapping in _mappings(process))
    maps: dict[int, int] = {}  # one may be open twice
    for entry in (process / "fdinfo").iterdir():
        try:
            said = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # the directory's own descriptor, closed meanwhile
        if "map_type" in said:
            maps[int(said["map_id"])] = int(said["memlock"])
    return {"resident_bytes": resident_kib << 10, "kernel_maps_bytes": sum(maps.values())}


def together(processes: Iterable[Path]) -> int:
    """``resident_bytes`` of several processes, with what they share of files once.

    Of each stretch of a file that is what the process has that has most of it: no kernel tells without
    privileges which pages are the same.
    """
    own_kib, of_files = 0, dict[str, int]()
    for process in processes:
        for mapping in _mappings(process):
            own_kib += mapping.own_kib
            most_kib = of_files.get(mapping.place, 0)
            of_files[mapping.place] = max(most_kib, mapping.resident_kib - mapping.own_kib)
    return own_kib + sum(of_files.values()) << 10


class _Mapping(NamedTuple):
    place: str  # in a file: offset, device, inode, name
    resident_kib: int
    own_kib: int  # of that, pages of no file, or that it has written to


def _mappings(process: Path) -> Iterator[_Mapping]:
    place, is_map, resident_kib = "", False, 0
    for line in (process / "smaps").read_text().splitlines():
        if _MAPPING.match(line):
            place = line.split(maxsplit=2)[2]
            is_map = line.endswith(" anon_inode:bpf-map")
        elif is_map:
            continue
        elif line.startswith("Rss:"):
            resident_kib = int(line.split()[1])
        elif line.startswith("Anonymous:"):
            yield _Mapping(place, resident_kib, int(line.split()[1]))


def hold_little() -> None:
    """Give freed memory back to the kernel as soon as it goes; for the whole process, with glibc alone.

    glibc keeps what was freed, in an arena for each thread, and the larger blocks are that it has seen, the
    larger are those that it keeps.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give back what is free by now; after work that is done once. With glibc alone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
