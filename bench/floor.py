"""What the kernel's statistics say of a program that does nothing, on the same hooks in the same run as ours.

They read the clock before and after every run, and the read itself is in what they show. Above
that, a run that finds its program, its counters and its code in memory rather than in a cache pays
for the way there; so a hook that is met seldom, between things that fill caches, costs several times
what it costs in a tight loop, whatever the program does. An empty program shows both.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from ztprobe.kernelnet.clsact import EGRESS, has_clsact, remove_named
from ztprobe.kernelnet.netlink import netlink
from ztprobe.kernelnet.netns import entered
from ztprobe.preflight.bpf import RAW_TRACEPOINT, SCHED_CLS, TCX_EGRESS, trivial_program
from ztprobe.probes.kernel import KernelProbes, ProgramCost

__all__ = ("EMPTY_TC", "empty_name", "empty_programs", "read_empty")

EMPTY_TC = "an empty tc program"


def empty_name(tracepoint: str) -> str:
    """What the empty program on a tracepoint is called."""
    return f"an empty program on {tracepoint}"


@contextlib.contextmanager
def empty_programs(netns: Path, interface: str, tracepoints: tuple[str, ...]) -> Iterator[list[ProgramCost]]:
    """Run one behind ours as packets leave the interface, one at each tracepoint; see `read_empty`."""
    with contextlib.ExitStack() as stack:
        costs: list[ProgramCost] = []

        def counted(program: str, kind: int, hook: str) -> int:
            fd = stack.enter_context(trivial_program(kind))
            costs.append(ProgramCost(signal="", hook=hook, program=program, fd=fd))
            return fd

        ipr = stack.enter_context(netlink(netns))
        (index,) = ipr.link_lookup(ifname=interface)
        fd = counted(EMPTY_TC, SCHED_CLS, f"{interface} egress")
        if has_clsact(ipr, index):  # ours hang there
            # tc filter add dev IFACE egress bpf direct-action fd N
            place = {"index": index, "parent": EGRESS, "prio": 2}
            ipr.tc("add-filter", "bpf", fd=fd, name="empty", direct_action=True, **place)
            stack.callback(remove_named, ipr, index, EGRESS, "empty")
        else:
            with entered(netns):
                stack.callback(os.close, _linked(fd, index))
        for tracepoint in tracepoints:
            fd = counted(empty_name(tracepoint), RAW_TRACEPOINT, f"raw_tp {tracepoint}")
            link_fd = ctypes.CDLL("libbpf.so.1").bpf_raw_tracepoint_open(tracepoint.encode(), fd)
            if link_fd >= 0:  # older kernels have not all of them
                stack.callback(os.close, link_fd)
        yield costs


def _linked(program_fd: int, index: int) -> int:
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    link_fd: int = libbpf.bpf_link_create(program_fd, index, TCX_EGRESS, None)
    if link_fd < 0:
        raise OSError(ctypes.get_errno(), "a program could not be hung on tcx")
    return link_fd


def read_empty(kernel: KernelProbes, empty: list[ProgramCost]) -> None:
    """Bring them up to date, and leave them out of what ``kernel`` tells of itself."""
    own, kernel.costs = kernel.costs, empty
    try:
        kernel.read_costs()
    finally:
        kernel.costs = own
