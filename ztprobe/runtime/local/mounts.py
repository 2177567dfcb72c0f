"""mount(2) and umount2(2), which Python does not have. Standard library only: used between fork and exec."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ("MS_BIND", "MS_PRIVATE", "MS_REC", "is_mount_point", "mount", "umount")

MS_BIND = 4096  # include/uapi/linux/mount.h
MS_REC = 16384
MS_PRIVATE = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    """mount(2). :raises OSError: with the target in its message."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount on {target}")


def umount(target: Path) -> None:
    """umount2(2), not lazily. :raises OSError: EBUSY while anything is mounted or open below."""
    _check(_libc.umount2(str(target).encode(), 0), f"umount {target}")


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted there; unlike os.path.ismount, a directory bound onto itself counts."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == str(path) for line in lines)
