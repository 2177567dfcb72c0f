"""What the kernel's statistics say of a program that does nothing, under the same traffic as ours.

They read the clock before and after every run, and the read itself is in what they show. On a
virtual machine, with caches that the traffic has taken, that is no small part of a short run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from bench.startup import Watch
from tests.kernel.pods import TestPod
from ztprobe.clsact import EGRESS, remove_named
from ztprobe.netlink import netlink
from ztprobe.preflight.bpf import RAW_TRACEPOINT, SCHED_CLS, trivial_program
from ztprobe.probes.kernel import ProgramCost

__all__ = ("EMPTY_TC", "EMPTY_TRACEPOINT", "empty_programs")

EMPTY_TC, EMPTY_TRACEPOINT = "an empty tc program", "an empty tracepoint program"
_TRACEPOINT = b"sock_send_length"


@contextlib.contextmanager
def empty_programs(pod: TestPod, watch: Watch) -> Iterator[None]:
    """Run one behind ours as packets leave the pod, one as processes write; ``watch`` counts them too."""
    with contextlib.ExitStack() as stack:

        def counted(program: str, kind: int) -> int:
            cost = ProgramCost(
                signal="", hook="", program=program, fd=stack.enter_context(trivial_program(kind))
            )
            watch.kernel.costs.append(cost)
            stack.callback(watch.kernel.costs.remove, cost)
            return cost.fd

        ipr = stack.enter_context(netlink(pod.netns))
        (index,) = ipr.link_lookup(ifname="eth0")
        place = {"index": index, "parent": EGRESS}
        # tc filter add dev eth0 egress bpf direct-action fd N
        fd = counted(EMPTY_TC, SCHED_CLS)
        ipr.tc("add-filter", "bpf", fd=fd, name="empty", direct_action=True, prio=2, **place)
        stack.callback(remove_named, ipr, index, EGRESS, "empty")
        fd = counted(EMPTY_TRACEPOINT, RAW_TRACEPOINT)
        link_fd = ctypes.CDLL("libbpf.so.1").bpf_raw_tracepoint_open(_TRACEPOINT, fd)
        if link_fd >= 0:  # Linux 6.3
            stack.callback(os.close, link_fd)
        yield
