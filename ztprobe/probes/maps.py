"""The probes' maps as the reader sees them: connection numbers to hand out, and what is left at the end.

Tables are BCC's, by the names of ``ebpf/maps.h``.
"""

from __future__ import annotations

import ctypes
import errno
import functools
from pathlib import Path
from typing import Any

import numpy as np

from ztprobe.events.kinds import EventKind
from ztprobe.events.layout import enums, structs

__all__ = (
    "offer_numbers",
    "possible_cpus",
    "read_open_bursts",
    "read_open_loads",
    "read_open_turns",
    "read_pairs",
    "read_whole",
)

_LOOPBACK_NET = 127  # lowest byte of an address in network order, read little-endian
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


def read_whole(
    libbpf: Any, fd: int, key_type: np.dtype[np.void], value_type: np.dtype[np.void], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """All keys and values of a hash map, by few system calls (BPF_MAP_LOOKUP_BATCH, Linux 5.6).

    :param libbpf: libbpf.so.1.
    :param most: entries that it can have.
    """
    keys, values = np.zeros(most, key_type), np.zeros(most, value_type)
    position, taken = ctypes.create_string_buffer(max(key_type.itemsize, 8)), 0
    count, first = ctypes.c_uint32(), True
    while taken < most:
        count.value = most - taken
        failed = libbpf.bpf_map_lookup_batch(
            ctypes.c_int(fd),
            None if first else position,
            position,
            ctypes.c_void_p(keys.ctypes.data + taken * key_type.itemsize),
            ctypes.c_void_p(values.ctypes.data + taken * value_type.itemsize),
            ctypes.byref(count),
            None,
        )
        if failed == -errno.ENOENT:  # that was the last batch
            taken += count.value
            break
        if failed < 0:
            break  # entries come and go so fast that a bucket grew: the rest is read the next time
        taken, first = taken + count.value, False
    return keys[:taken], values[:taken]


def read_pairs(bpf: Any) -> dict[tuple[int, int], int]:
    """(connection read from, connection written to) -> times; connections by their identity."""
    return {(getattr(key, "from"), key.to): leaf.value for key, leaf in bpf[b"pairs"].items()}


def read_open_bursts(bpf: Any) -> list[dict[str, int]]:
    """Bursts that nothing has closed yet, as rows of ``struct burst``."""
    rows = []
    conns, hooks, members = bpf[b"conns"], enums()["hook"], structs()["burst"].members.keys() - {"pad"}
    for number in bpf[b"numbers"].values():
        conn = conns[conns.Key(number.value)]
        wire = hooks["lo" if conn.key.laddr & 0xFF == _LOOPBACK_NET else "eth"]
        halves = (
            (conn.tx, wire),
            (conn.rx, wire),
            (conn.sock_tx, hooks["sock"]),
            (conn.sock_rx, hooks["sock"]),
        )
        for position, (half, hook) in enumerate(halves):
            if half.bytes:
                row = {name: getattr(half, name) for name, _ in half._fields_ if name in members}
                row |= {"ts_ns": half.last_ns, "connection": conn.id, "netns": conn.key.netns}
                rows.append(row | {"kind": EventKind.BURST, "hook": hook, "direction": position % 2})
    return rows


def read_open_turns(bpf: Any) -> list[dict[str, int]]:
    """Turns that nothing has ended yet, as rows of ``struct turn``."""
    rows = []
    conns, hooks = bpf[b"conns"], enums()["hook"]
    for number in bpf[b"numbers"].values():
        conn = conns[conns.Key(number.value)]
        wire = hooks["lo" if conn.key.laddr & 0xFF == _LOOPBACK_NET else "eth"]
        speeches = (
            (conn.tx_speech, wire),
            (conn.rx_speech, wire),
            (conn.sock_tx_speech, hooks["sock"]),
            (conn.sock_rx_speech, hooks["sock"]),
        )
        for position, (speech, hook) in enumerate(speeches):
            if speech.first_ns:
                row = {
                    name: getattr(speech, name)
                    for name in ("first_ns", "first_seq", "end_seq", "first_ack_us", "last_ack_us")
                }
                row |= {"ts_ns": speech.last_ns, "connection": conn.id, "netns": conn.key.netns}
                row |= {"tid": speech.id & 0xFFFFFFFF, "tgid": speech.id >> 32}
                rows.append(row | {"kind": EventKind.TURN, "hook": hook, "direction": position % 2})
    return rows


def read_open_loads(bpf: Any) -> list[dict[str, int]]:
    """What processes load at present, as rows of ``struct module_load``."""
    return [
        {
            "ts_ns": loading.last_ns,
            "first_ns": loading.first_ns,
            "opens": loading.opens,
            "own_opens": loading.own_opens,
            "own_ns": loading.own_ns,
            "tgid": tgid.value,
            "tid": loading.tid,
            "kind": EventKind.MODULE_LOAD,
        }
        for tgid, loading in bpf[b"loadings"].items()
    ]
