"""What an agent holds: in its process, and in the kernel on its behalf."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

__all__ = ("give_back", "held")

_OWN = Path("/proc/self")
_COMPILER = re.compile(r"lib(bcc|LLVM|clang)[^/]*$")
_MADV_DONTNEED = 4


def held() -> dict[str, int]:
    """``resident_bytes`` of this process, and ``kernel_maps_bytes`` of the BPF maps that it has open."""
    resident_kib = 0
    for line in (_OWN / "smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            resident_kib = int(line.split()[1])
    maps: dict[int, int] = {}  # one may be open twice
    for entry in (_OWN / "fdinfo").iterdir():
        try:
            said = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # the directory's own descriptor, closed meanwhile
        if "map_type" in said:
            maps[int(said["map_id"])] = int(said["memlock"])
    return {"resident_bytes": resident_kib << 10, "kernel_maps_bytes": sum(maps.values())}


def give_back() -> None:
    """Let go of what compiling the probes has left: free heap, and the compiler's code.

    Its code is mapped from a file and never written to, so the kernel may take its pages at any time
    and reads them again if they are asked for.
    """
    libc = ctypes.CDLL(None)
    libc.malloc_trim(ctypes.c_size_t(0))
    for line in (_OWN / "maps").read_text().splitlines():
        span, permissions, *_, path = line.split(maxsplit=5)
        if permissions == "r-xp" and _COMPILER.search(path):
            start, end = (int(edge, 16) for edge in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
