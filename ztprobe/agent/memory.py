"""What an agent holds: in its process, and in the kernel on its behalf."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ("held",)

_OWN = Path("/proc/self")
_MAPPING = re.compile("[0-9a-f]+-[0-9a-f]+ ")  # proc(5): a mapping's first line


def held(process: Path = _OWN) -> dict[str, int]:
    """``resident_bytes`` of a process, and ``kernel_maps_bytes`` of the BPF maps that it has open.

    Ring buffers that are mapped into the process are the kernel's, and are counted there alone.
    """
    resident_kib, is_map = 0, False
    for line in (process / "smaps").read_text().splitlines():
        if _MAPPING.match(line):
            is_map = line.endswith(" anon_inode:bpf-map")
        elif line.startswith("Rss:") and not is_map:
            resident_kib += int(line.split()[1])
    maps: dict[int, int] = {}  # one may be open twice
    for entry in (process / "fdinfo").iterdir():
        try:
            said = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # the directory's own descriptor, closed meanwhile
        if "map_type" in said:
            maps[int(said["map_id"])] = int(said["memlock"])
    return {"resident_bytes": resident_kib << 10, "kernel_maps_bytes": sum(maps.values())}
