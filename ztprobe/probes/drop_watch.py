"""Dropped packets as they happen: one program and its maps, apart from whatever a run has loaded.

Of each kind of drop the kernel passes the first few in a second up whole and counts the others
(``ebpf/drops.c``), so a flood costs a reader next to nothing. `DropWatch.read` gives both.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ztprobe.errors import PreflightError
from ztprobe.events.layout import plain_structs
from ztprobe.paths import EBPF_DIR
from ztprobe.probes.btf import Btf
from ztprobe.probes.compiler import compile_programs
from ztprobe.probes.loader import Loaded
from ztprobe.probes.maps import possible_cpus, read_whole
from ztprobe.probes.offsets import offset_flags
from ztprobe.probes.program_info import ProgramInfo
from ztprobe.probes.ring import Ring
from ztprobe.probes.tracing import attach_tracing_program

__all__ = ("Collected", "DropAccount", "DropWatch")

_SOURCES = ("drops.h", "kernel.h", "headers.h", "drops.c")
_OFFSETS = (
    *("SOCK_NET", "SOCK_FAMILY", "NET_INUM", "DEV_NET", "DEV_IFINDEX", "SKB_DEV", "SKB_SK", "SKB_HEAD"),
    *("SKB_DATA", "SKB_LEN", "SKB_PROTOCOL", "SKB_TAIL", "SKB_IIF", "SKB_NETWORK_HEADER"),
)
_PROGRAM, _TRACEPOINT = "raw_kfree_skb", "kfree_skb"
_COUNTER_SLOTS = 16  # COUNTER_SLOTS of drops.c, and below its counters
_SEEN, _PASSED, _COLLECTED, _UNCOUNTED = range(4)
_COUNTS_PERIOD_NS = 400_000_000  # looking through all kinds costs a millisecond
_IDLE_NS = 5_000_000_000  # a kind of which nothing came for so long makes room


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Packets of one kind that were counted since the last look and not passed up."""

    kind: bytes  # struct drop_kind
    packets: int
    payload_bytes: int
    last_ns: int


@dataclass(frozen=True, kw_only=True)
class DropAccount:
    """What became of the drops in the watched namespaces so far."""

    seen: int
    passed: int
    collected: int
    uncounted: int  # too many kinds at once, and no room in the ring either
    missed_runs: int  # of the program, of the whole machine: an upper bound for drops that nobody saw


class DropWatch:
    """load -> watch ... -> start -> (wait, read) -> close; a context manager that closes.

    :param kinds: how many kinds of drop can be told apart at a time.
    """

    def __init__(self, *, ring_bytes: int = 4 << 20, kinds: int = 16384) -> None:
        self._ring_bytes = ring_bytes
        self._entries = kinds
        self.reason_names: dict[int, str] = {}
        self.record_type = plain_structs("drops.h")["dropped"]
        self.kind_type = plain_structs("drops.h")["drop_kind"]
        self._count_type = plain_structs("drops.h")["drop_count"]
        self._libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
        self._open, self._attached = contextlib.ExitStack(), contextlib.ExitStack()
        self._loaded: Loaded | None = None
        self._ring: Ring | None = None
        self._counters: mmap.mmap | None = None
        self._program_fd = -1
        self._known: dict[bytes, tuple[int, int]] = {}  # kind -> collected packets and bytes so far
        self._read_collected = 0
        self._counts_read_ns = 0
        self._since_purge = 0  # packets passed up since kinds were looked through

    def __enter__(self) -> DropWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> None:
        """Compile and load. :raises PreflightError: this kernel lacks something that it needs."""
        with Btf() as btf:
            try:
                self._tracepoint_id = btf.tracepoint_id(_TRACEPOINT)
            except KeyError:
                raise PreflightError(f"this kernel has no tracepoint {_TRACEPOINT}") from None
            flags = ["-g0", "-Wno-macro-redefined", "-Wno-unused-function", "-Wno-pointer-arith"]
            flags += [f"-DRING_PAGES={self._ring_bytes // mmap.PAGESIZE}", f"-DCPUS={possible_cpus()}"]
            flags += [f"-DKINDS_ENTRIES={self._entries}", *offset_flags(btf, _OFFSETS)]
            prefix = "SKB_DROP_REASON_"
            self.reason_names = {k: v.removeprefix(prefix) for k, v in btf.enum("skb_drop_reason").items()}
            self._info = ProgramInfo(btf, self._libbpf)
        text = (EBPF_DIR / "events.h").read_text()
        text += "".join(f'#line 1 "{name}"\n{(EBPF_DIR / name).read_text()}' for name in _SOURCES)
        self._loaded = Loaded(compile_programs(text, flags, ()), self._libbpf)
        self._open.callback(self._loaded.close)
        self._ring = Ring(self._loaded.map_fd("drops"), self._ring_bytes, self.record_type)
        self._open.callback(self._ring.close)
        size = -(-8 * _COUNTER_SLOTS * possible_cpus() // mmap.PAGESIZE) * mmap.PAGESIZE
        self._counters = mmap.mmap(self._loaded.map_fd("counters"), size, mmap.MAP_SHARED, mmap.PROT_READ)
        self._open.callback(self._counters.close)
        self._poll = self._open.enter_context(contextlib.closing(select.epoll()))
        self._poll.register(self._loaded.map_fd("drops"), select.EPOLLIN)

    def _table(self, name: bytes) -> Any:
        if self._loaded is None:
            raise RuntimeError("maps are there from load to close")
        return self._loaded[name]

    def watch(self, netns_inode: int) -> None:
        """Report drops in this network namespace from now on."""
        table = self._table(b"pods")
        table[table.Key(netns_inode)] = table.Leaf(1)

    def forget(self, netns_inode: int) -> None:
        """Report them no longer; nothing if it was not watched."""
        table = self._table(b"pods")
        with contextlib.suppress(KeyError):
            del table[table.Key(netns_inode)]

    def start(self) -> None:
        """Begin to see. :raises PreflightError: the kernel refuses."""
        if self._loaded is None:
            raise RuntimeError("load() comes first")
        code = self._loaded.code(_PROGRAM)
        self._program_fd, link_fd = attach_tracing_program(
            self._libbpf,
            name=_PROGRAM,
            instructions=ctypes.addressof(code),
            instruction_bytes=len(code),
            tracepoint=_TRACEPOINT,
            btf_id=self._tracepoint_id,
        )
        self._open.callback(os.close, self._program_fd)
        self._attached.callback(os.close, link_fd)
        self._open.callback(self._attached.close)

    def stop(self) -> None:
        """See no more; what was seen can still be read. Idempotent."""
        self._attached.close()

    def wait(self, timeout_s: float) -> None:
        """Until a drop is passed up, or the time is over."""
        self._poll.poll(timeout_s)

    def read(self, *, last: bool = False) -> tuple[np.ndarray, list[Collected]]:
        """What was passed up, and now and then what was counted beside that, since the last call.

        :param last: look at all counts.
        :returns: records of `record_type`, whose ``kind`` is the bytes of a `kind_type`; and counts.
        """
        if self._ring is None:
            raise RuntimeError("load() comes first")
        rows = self._ring.drain()
        self._since_purge += rows.size  # each kind's first is among them
        now_ns, collected = time.monotonic_ns(), int(self._sums()[_COLLECTED])
        is_due = last or now_ns - self._counts_read_ns > _COUNTS_PERIOD_NS
        if not is_due or (collected == self._read_collected and self._since_purge < self._entries // 2):
            return rows, []
        self._read_collected, self._counts_read_ns = collected, now_ns
        return rows, self._read_kinds()

    def _read_kinds(self) -> list[Collected]:
        fd = self._table(b"kinds").fd
        keys, counts = read_whole(self._libbpf, fd, self.kind_type, self._count_type, self._entries)
        self._since_purge = 0
        found = []
        newest_ns = int(counts["last_ns"].max()) if counts.size else 0
        for key, count in zip(keys, counts, strict=True):
            kind, packets, size = key.tobytes(), int(count["collected"]), int(count["bytes"])
            before = self._known.get(kind, (0, 0))
            last_ns = int(count["last_ns"])
            if packets != before[0]:
                self._known[kind] = (packets, size)
                more = Collected(
                    kind=kind, packets=packets - before[0], payload_bytes=size - before[1], last_ns=last_ns
                )
                found.append(more)
            elif newest_ns - last_ns > _IDLE_NS:
                self._known.pop(kind, None)
                self._libbpf.bpf_map_delete_elem(fd, kind)
        return found

    def _sums(self) -> Any:
        if self._counters is None:
            raise RuntimeError("counters are there from load to close")
        slots = np.frombuffer(self._counters, np.uint64, _COUNTER_SLOTS * possible_cpus())
        return slots.reshape(-1, _COUNTER_SLOTS).sum(axis=0)

    def account(self) -> DropAccount:
        """What became of all drops so far."""
        sums = self._sums()
        info = self._info.read(self._program_fd) if self._program_fd >= 0 else None
        return DropAccount(
            seen=int(sums[_SEEN]),
            passed=int(sums[_PASSED]),
            collected=int(sums[_COLLECTED]),
            uncounted=int(sums[_UNCOUNTED]),
            missed_runs=info["recursion_misses"] if info is not None else 0,
        )

    def close(self) -> None:
        """Detach and unload; idempotent."""
        self._open.close()
        self._loaded, self._ring, self._counters, self._program_fd = None, None, None, -1
