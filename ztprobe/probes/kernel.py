"""The probes in the kernel: compiled for it, loaded, attached, their maps read.

Every struct offset is taken from the running kernel's BTF. Hooks are chosen by asking whether the
kernel has them, never by its version.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ztprobe.errors import PreflightError
from ztprobe.paths import EBPF_DIR
from ztprobe.preflight.signals import hooks_in_use
from ztprobe.probes.btf import Btf
from ztprobe.probes.casts import cast_flags
from ztprobe.probes.compiler import compile_programs
from ztprobe.probes.interfaces import PACKET_PROGRAMS, Clsact, PacketHooks, Tcx
from ztprobe.probes.loader import Loaded
from ztprobe.probes.maps import (
    offer_numbers,
    possible_cpus,
    read_open_bursts,
    read_open_loads,
    read_open_turns,
    read_pairs,
)
from ztprobe.probes.offsets import OFFSETS, ipv6_flags, offset_flags
from ztprobe.probes.program_info import ProgramInfo
from ztprobe.probes.system_calls import system_call_flags
from ztprobe.probes.tracing import attach_kprobe, attach_tracing_program

__all__ = ("COUNTERS", "KernelProbes", "ProgramCost")

# The counters of maps.h, in its order: events that found a ring full (per ring), insertions that found a
# map full, packets that could not be parsed, those of IPv6, events that went into a ring, that wanted to.
COUNTERS = (
    *("bursts", "packets", "connections", "drops", "points"),
    *("map_full", "parse", "ipv6", "emitted", "tried"),
)
_COUNTER_SLOTS = 16  # COUNTER_SLOTS of maps.h

# Concatenated rather than included: BCC rewrites map accesses in the main file only.
_SOURCES = (
    *("kernel.h", "headers.h", "maps.h", "rings.h", "turns.h", "connections.h", "heads.c"),
    *("sender.c", "sendlog.c"),
    *("bursts.c", "edges.c", "sockets.c", "lifecycle.c", "sched.c", "processes.c"),
)

# signal -> (program, tracepoint)
_TRACEPOINTS: dict[str, tuple[tuple[str, str], ...]] = {
    "tcp_life_cycle": (("raw_inet_sock_set_state", "inet_sock_set_state"),),
    "retransmissions": (("raw_tcp_retransmit_skb", "tcp_retransmit_skb"),),
    "drops": (("raw_kfree_skb", "kfree_skb"),),
    "run_queue": (("raw_sched_switch", "sched_switch"),),
}
# Only where deployments are traced that ran already.
_PROCESS_STARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "process_starts": (
        ("raw_sched_process_fork", "sched_process_fork"),
        ("raw_sched_process_exec", "sched_process_exec"),
    ),
    "module_loads": (
        ("raw_sys_enter", "sys_enter"),
        ("raw_sched_process_exit", "sched_process_exit"),
    ),
}
_SOCK_LENGTH: dict[str, tuple[tuple[str, str], ...]] = {
    "app_reads": (("raw_sock_recv_length", "sock_recv_length"),),
    "app_writes": (("raw_sock_send_length", "sock_send_length"),),
}
_SOCK_KPROBES = {"app_reads": "tcp_recvmsg", "app_writes": "tcp_sendmsg"}

_DEFAULT_CONNS, _PIDS_PER_WORD = 16384, 32  # maps.h has the same

_KPROBE, _SCHED_CLS = 2, 3  # enum bpf_prog_type

# A program's run lasts microseconds; those that saw the old maps are over after this.
_LAST_RUN_S = 0.005


class ProgramCost:
    """What one program has cost since statistics were switched on."""

    def __init__(self, *, signal: str, hook: str, program: str, fd: int) -> None:
        self.signal, self.hook, self.program, self.fd = signal, hook, program, fd
        self.run_count = 0
        self.run_time_ns = 0
        self.recursion_missed = 0

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        names = ("signal", "hook", "program", "run_count", "run_time_ns", "recursion_missed")
        return {name: getattr(self, name) for name in names}


class KernelProbes:
    """load -> trace_netns / trace_process -> attach -> (drain) -> quiesce -> close.

    :param map_entries: other sizes for maps.h's ``*_ENTRIES``, by lower-case name (``conns``).
    :param tcx: hang packet programs there if the kernel can; False: on clsact in any case.
    :param attached: of a deployment that ran already: see turns and process starts besides.
    """

    def __init__(
        self,
        *,
        ring_bytes: int = 8 << 20,
        map_entries: Mapping[str, int] | None = None,
        tcx: bool = True,
        attached: bool = False,
    ) -> None:
        self.ring_bytes = ring_bytes
        self._wants_tcx = tcx
        self._attached = attached
        self._packets: PacketHooks | None = None
        self._map_entries = dict(map_entries or {})
        self._counter_map: mmap.mmap | None = None
        self.costs: list[ProgramCost] = []
        self.reason_names: dict[int, str] = {}
        self._loaded: Loaded | None = None
        self._libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
        self._stats_fd = -1
        self._info: ProgramInfo | None = None
        self._tracepoint_ids: dict[str, int] = {}
        self._fds: list[int] = []
        self._processes: dict[int, int] = {}  # the words of `processes` that are not 0

    def load(self) -> None:
        """Compile and load every program the kernel has hooks for.

        :raises PreflightError: BTF, BCC or a struct member that the programs need is missing.
        """
        with Btf() as btf:
            casts = cast_flags(btf)
            flags = self._flags(btf) + casts
            # Without a number of the filter's own, a program has to follow typed pointers to the namespace.
            tcx = self._wants_tcx and bool(casts) and bool(btf.function_id("tcx_link_attach"))
            if tcx:
                flags.append("-DHAVE_TCX")
            self.reason_names = btf.drop_reasons()
            self._info = ProgramInfo(btf, self._libbpf)
            self._has_sock_length = btf.has("btf_trace_sock_recv_length")
            for _, tracepoint in self._tracepoints():
                try:
                    self._tracepoint_ids[tracepoint] = btf.tracepoint_id(tracepoint)
                except KeyError:
                    raise PreflightError(f"this kernel has no tracepoint {tracepoint}") from None
        text = (EBPF_DIR / "events.h").read_text()
        text += "".join(f'#line 1 "{name}"\n{(EBPF_DIR / name).read_text()}' for name in _SOURCES)
        self._loaded = Loaded(compile_programs(text, flags, casts), self._libbpf)
        offer_numbers(
            self._libbpf, self.map_fd("free_numbers"), self._map_entries.get("conns", _DEFAULT_CONNS)
        )
        self._packets = Tcx(self._libbpf) if tcx else Clsact(self._bpf[b"interfaces"])
        size = -(-8 * _COUNTER_SLOTS * possible_cpus() // mmap.PAGESIZE) * mmap.PAGESIZE
        self._counter_map = mmap.mmap(self.map_fd("counters"), size, mmap.MAP_SHARED, mmap.PROT_READ)

    @property
    def _bpf(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("programs and maps are there from load to close")
        return self._loaded

    def _flags(self, btf: Btf) -> list[str]:
        # Nothing reads debug information here, and making it takes the compiler a tenth of its time.
        flags = ["-g0", "-Wno-macro-redefined", "-Wno-unused-function", "-Wno-pointer-arith"]
        flags.append(f"-DRING_PAGES={self.ring_bytes // mmap.PAGESIZE}")
        flags.append(f"-DFEW_PAGES={self.ring_size('connections') // mmap.PAGESIZE}")
        flags.append(f"-DCPUS={possible_cpus()}")
        flags += [f"-D{name.upper()}_ENTRIES={entries}" for name, entries in self._map_entries.items()]
        flags += offset_flags(btf, OFFSETS)
        if self._attached:
            flags += ["-DWATCH_TURNS", *system_call_flags(btf), *ipv6_flags(btf)]
        if btf.has("btf_trace_sock_recv_length"):
            flags.append("-DHAVE_SOCK_LENGTH")
        if btf.tracepoint_arguments("tcp_retransmit_skb") > 2:
            flags.append("-DHAVE_RETRANSMIT_ERROR")
        return flags

    def trace_netns(self, inode: int, *, node: bool = False) -> None:
        """Trace a pod's (or the node's) network namespace from now on."""
        table = self._bpf[b"pods"]
        table[table.Key(inode)] = table.Leaf(2 if node else 1)
        self._bpf[b"watching"][ctypes.c_int(0)] = ctypes.c_uint32(1)

    def forget_netns(self, inode: int) -> None:
        """Trace a network namespace no longer; nothing if it was not traced."""
        table = self._bpf[b"pods"]
        with contextlib.suppress(KeyError):
            del table[table.Key(inode)]

    def trace_process(self, tgid: int, *, proxy: bool) -> None:
        """Trace a process of a pod: its reads, writes and waits for a CPU."""
        self._mark_process(tgid, 2 if proxy else 1)

    def forget_process(self, tgid: int) -> None:
        """Trace a process no longer."""
        self._mark_process(tgid, 0)

    def _mark_process(self, tgid: int, mark: int) -> None:
        table = self._bpf[b"processes"]
        index, shift = tgid // _PIDS_PER_WORD, tgid % _PIDS_PER_WORD * 2
        # The kernel itself marks what traced processes start.
        before = table[table.Key(index)].value if self._attached else self._processes.get(index, 0)
        word = before & ~(3 << shift) | mark << shift
        self._processes[index] = word
        table[table.Key(index)] = table.Leaf(word)

    def attach(self) -> dict[str, str]:
        """Attach what acts on the whole machine. :returns: signal -> hook in use."""
        for signal, programs in self._signals().items():
            for program, tracepoint in programs:
                fd = self._attach_tracepoint(program, tracepoint)
                hook = f"tp_btf {tracepoint}"
                self.costs.append(ProgramCost(signal=signal, hook=hook, program=program, fd=fd))
        if not self._has_sock_length:
            for signal, function in _SOCK_KPROBES.items():
                self._attach_kprobes(signal, function)
        signal = "transfer_edges, tls_phases, dns"
        packets = self._packet_hooks()
        for program, place in PACKET_PROGRAMS.items():
            fd = self._bpf.load(program, _SCHED_CLS)
            hook = f"{packets.name} {place}"
            self.costs.append(ProgramCost(signal=signal, hook=hook, program=program, fd=fd))
        starts = {
            signal: "tp_btf " + ", ".join(point for _, point in of) for signal, of in _PROCESS_STARTS.items()
        }
        hooks = hooks_in_use(kprobes=not self._has_sock_length, packets=packets.name)
        return hooks | (starts if self._attached else {})

    def _packet_hooks(self) -> PacketHooks:
        if self._packets is None:
            raise RuntimeError("packet programs are there from load to close")
        return self._packets

    def _signals(self) -> dict[str, tuple[tuple[str, str], ...]]:
        found = _TRACEPOINTS | (_SOCK_LENGTH if self._has_sock_length else {})
        return found | (_PROCESS_STARTS if self._attached else {})

    def _tracepoints(self) -> Iterator[tuple[str, str]]:
        for programs in self._signals().values():
            yield from programs

    def _attach_tracepoint(self, program: str, tracepoint: str) -> int:
        code = self._bpf.code(program)
        program_fd, link_fd = attach_tracing_program(
            self._libbpf,
            name=program,
            instructions=ctypes.addressof(code),
            instruction_bytes=len(code),
            tracepoint=tracepoint,
            btf_id=self._tracepoint_ids[tracepoint],
        )
        self._fds += [link_fd, program_fd]
        return program_fd

    def _attach_kprobes(self, signal: str, function: str) -> None:
        for prefix, at_return in (("kprobe", False), ("kretprobe", True)):
            program = f"{prefix}_{function}"
            fd = self._bpf.load(program, _KPROBE)
            self._fds.append(attach_kprobe(fd, function, at_return=at_return))
            self.costs.append(ProgramCost(signal=signal, hook=f"{prefix} {function}", program=program, fd=fd))

    def attach_interface(self, netns: Path, *interfaces: str) -> None:
        """Put the packet programs on a pod's interfaces and its loopback.

        :raises PreflightError: the kernel refuses, they are there already, or these are more pods than fit.
        """
        self._packet_hooks().attach(netns, interfaces, {cost.program: cost.fd for cost in self.costs})

    def detach_interface(self, netns: Path) -> None:
        """Take the packet programs off a pod's interfaces; nothing if the pod is gone."""
        self._packet_hooks().detach_from(netns)

    def missing_programs(self) -> Iterator[tuple[Path, str, str]]:
        """(namespace, device, program) of those that somebody else has detached; see `clsact_programs`."""
        if self._packets is not None:
            yield from self._packets.missing()

    def clsact_programs(self) -> frozenset[str]:
        """The packet programs that are filters: anybody may remove them, and the kernel tells who listens."""
        return frozenset(PACKET_PROGRAMS if isinstance(self._packets, Clsact) else ())

    def enable_stats(self) -> None:
        """Count runs and run time of every program until `close` (BPF_ENABLE_STATS)."""
        if self._stats_fd < 0:
            self._stats_fd = self._libbpf.bpf_enable_stats(0)

    def read_costs(self) -> list[ProgramCost]:
        """Runs, run time and recursion misses of every program so far."""
        for cost in self.costs:
            if self._info is not None and (read := self._info.read(cost.fd)) is not None:
                cost.run_count, cost.run_time_ns = read["run_cnt"], read["run_time_ns"]
                cost.recursion_missed = read["recursion_misses"]
        return self.costs

    def recursion_missed(self) -> int:
        """Runs that the kernel left out because the program was running already on that CPU."""
        return sum(cost.recursion_missed for cost in self.read_costs())

    def ring_size(self, name: str) -> int:
        """Bytes of a ring; connections begin more seldom than anything else happens."""
        return max(mmap.PAGESIZE, self.ring_bytes // 4) if name == "connections" else self.ring_bytes

    def map_fd(self, name: str) -> int:
        """File descriptor of a map: a ring buffer (see collector) or the counters."""
        return self._bpf.map_fd(name)

    def counters(self) -> dict[str, int]:
        """`COUNTERS` since load, summed over CPUs."""
        if self._counter_map is None:
            raise RuntimeError("counters are there from load to close")
        slots = np.frombuffer(self._counter_map, np.uint64, _COUNTER_SLOTS * possible_cpus())
        sums = slots.reshape(-1, _COUNTER_SLOTS).sum(axis=0)
        return {name: int(sums[slot]) for slot, name in enumerate(COUNTERS)}

    def quiesce(self) -> None:
        """Trace nothing any more, so that nothing moves while the last events are read."""
        self._bpf[b"watching"][ctypes.c_int(0)] = ctypes.c_uint32(0)
        self._bpf[b"pods"].clear()
        processes = self._bpf[b"processes"]
        for index in self._processes:
            processes[processes.Key(index)] = processes.Leaf(0)
        self._processes.clear()
        self._packet_hooks().stop()
        time.sleep(_LAST_RUN_S)

    def pairs(self) -> dict[tuple[int, int], int]:
        """(connection read from, connection written to) -> times, for every proxy thread."""
        return read_pairs(self._bpf)

    def open_bursts(self) -> list[dict[str, int]]:
        """Bursts that nothing has closed yet, as rows of ``struct burst``: read once, at the end."""
        return read_open_bursts(self._bpf)

    def open_turns(self) -> list[dict[str, int]]:
        """Turns that nothing has ended yet, as rows of ``struct turn``: read once, at the end."""
        return read_open_turns(self._bpf) if self._attached else []

    def open_loads(self) -> list[dict[str, int]]:
        """What processes load at present, as rows of ``struct module_load``: read once, at the end."""
        return read_open_loads(self._bpf) if self._attached else []

    def detach(self) -> None:
        """Take every program off its hook; `attach` and `attach_interface` put them back. Idempotent."""
        if self._packets is not None:
            self._packets.detach()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self.costs.clear()

    def close(self) -> None:
        """Detach and unload everything; idempotent."""
        self.detach()
        if self._counter_map is not None:
            self._counter_map.close()
            self._counter_map = None
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1
