"""What an agent holds: in its process, and in the kernel on its behalf."""

from __future__ import annotations

from pathlib import Path

__all__ = ("held",)

_OWN = Path("/proc/self")


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
