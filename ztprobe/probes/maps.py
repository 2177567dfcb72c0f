"""The probes' maps as the reader sees them: connection numbers to hand out, and what is left at the end.

Tables are BCC's, by the names of ``ebpf/maps.h``.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from ztprobe.events.tables import Hook

__all__ = ("offer_numbers", "possible_cpus", "read_open_bursts", "read_pairs")

_POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")


@functools.cache
def possible_cpus() -> int:
    """How many CPUs this kernel can ever have: one more than the highest number of "0-3" or "0,2-5"."""
    return int(_POSSIBLE_CPUS.read_text().strip().replace(",", "-").split("-")[-1]) + 1


def offer_numbers(libbpf: Any, stack_fd: int, count: int) -> None:
    """Fill the stack of free connection numbers with 1 to ``count``.

    :param libbpf: libbpf.so.1.
    """
    libbpf.bpf_map_update_elem.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
    number = ctypes.c_uint32()
    # The lowest last: a stack gives it first, so that few connections touch little memory.
    for number.value in range(count, 0, -1):
        libbpf.bpf_map_update_elem(stack_fd, None, ctypes.byref(number), 0)


def read_pairs(bpf: Any) -> dict[tuple[tuple[int, ...], tuple[int, ...]], int]:
    """(connection read from, connection written to) -> times; a connection is netns, laddr, raddr, ports."""

    def flat(key: Any) -> tuple[int, ...]:
        return (key.netns, key.laddr, key.raddr, key.ports)

    return {(flat(getattr(key, "from")), flat(key.to)): leaf.value for key, leaf in bpf[b"pairs"].items()}


def read_open_bursts(bpf: Any) -> list[dict[str, int]]:
    """Bursts that nothing has closed yet, as rows of ``struct burst``."""
    rows = []
    conns = bpf[b"conns"]
    for number in bpf[b"numbers"].values():
        conn = conns[conns.Key(number.value)]
        key = conn.key
        wire = Hook.LO if key.laddr & 0xFF == 127 else Hook.ETH
        halves = ((conn.tx, wire), (conn.rx, wire), (conn.sock_tx, Hook.SOCK), (conn.sock_rx, Hook.SOCK))
        for position, (half, hook) in enumerate(halves):
            if half.bytes:
                row = {name: getattr(half, name) for name, _ in half._fields_}
                row |= {"netns": key.netns, "laddr": key.laddr, "raddr": key.raddr, "ports": key.ports}
                rows.append(row | {"hook": hook, "dir": position % 2})
    return rows
