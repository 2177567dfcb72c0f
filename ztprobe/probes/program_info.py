"""What the kernel says of a program of ours: its runs, and those that it left out."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from ztprobe.probes.btf import Btf

__all__ = ("ProgramInfo",)

_MEMBERS = ("run_time_ns", "run_cnt", "recursion_misses")


class ProgramInfo:
    """Reads ``struct bpf_prog_info`` as the running kernel has it.

    :param libbpf: libbpf.so.1.
    :raises KeyError: the kernel's has no such member.
    """

    def __init__(self, btf: Btf, libbpf: Any) -> None:
        self._libbpf = libbpf
        self._offsets = {name: btf.offset(f"bpf_prog_info.{name}") for name in _MEMBERS}
        self._bytes = btf.size("bpf_prog_info")

    def read(self, program_fd: int) -> dict[str, int] | None:
        """``run_time_ns`` and ``run_cnt`` (both need statistics switched on), ``recursion_misses``."""
        info, length = ctypes.create_string_buffer(self._bytes), ctypes.c_uint32(self._bytes)
        if self._libbpf.bpf_obj_get_info_by_fd(program_fd, info, ctypes.byref(length)) != 0:
            return None
        return {name: struct.unpack_from("<Q", info, at)[0] for name, at in self._offsets.items()}
