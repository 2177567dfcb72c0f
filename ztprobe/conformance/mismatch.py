"""Why pods get something else than their profile: what is known of the path and of the moment.

Nothing here is guessed from the figure that failed. A cause is named if it was seen: a lease that
is not in force, a path that meets two, packets that a queue dropped, CPUs without idle time, a
timer that ticks instead of counting. `moment_causes` is the decision alone, pure.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ztprobe.conformance.udp_probe import undisturbed
from ztprobe.emulation.apply import count_lease
from ztprobe.emulation.counters import counters
from ztprobe.emulation.delay_line.node import CHAIN, queued_by
from ztprobe.kernelnet.netlink import NetlinkError, netlink
from ztprobe.kernelnet.root_qdisc import HANDLE, root_qdisc
from ztprobe.leases.records import Lease
from ztprobe.pods.model import Pod

__all__ = (
    "Flow",
    "PathActivity",
    "PathMonitor",
    "applied_twice",
    "met_leases",
    "moment_causes",
    "path_causes",
)

Flow = tuple[Pod, Pod]  # sender, receiver

_BUSY_IDLE_SHARE = 0.1
_STOLEN_SHARE = 0.1
# With high-resolution timers 1 ns; without, a tick: 1 to 10 ms.
_COARSE_MS = 0.1
_LATE_MS = 1.0
_SLEEP_S = 0.0005
_STATS_LATE_S = 1.1  # of a delay line
_SHARED_SHARE = 0.1  # so many packets of others beside ours make a difference


@dataclass(frozen=True, kw_only=True)
class PathActivity:
    """What was seen of the machine while a measurement went on."""

    idle: Mapping[str, float]  # share of the time, by CPU
    stolen: float  # share that a hypervisor took of all CPUs
    overflow: int  # packets that a queue dropped and that nobody asked to lose
    timer_resolution_ms: float
    timer_late_ms: float  # in the median, for a thread that goes before others
    probes: int = 0  # that were sent
    others: int = 0  # other packets that went through the same queues beside them, where there is a rate


def moment_causes(moment: PathActivity) -> list[str]:
    """What of it explains a profile that measures wrong."""
    causes = []
    if moment.overflow:
        causes.append(
            f"a queue overflowed: {moment.overflow} packets were dropped that nobody asked to lose"
            " (queue_limit_packets says how many it holds)"
        )
    if moment.others > _SHARED_SHARE * moment.probes:
        causes.append(
            f"other traffic shared the rate meanwhile ({moment.others} packets beside {moment.probes}"
            " probes): what waits behind it is late; verify while these pods are quiet"
        )
    busy = {cpu: idle for cpu, idle in moment.idle.items() if idle < _BUSY_IDLE_SHARE}
    if moment.stolen > _STOLEN_SHARE:
        causes.append(f"the hypervisor took {100 * moment.stolen:.0f} % of this machine's CPU time meanwhile")
    if moment.idle and len(busy) == len(moment.idle):
        share = 100 * (1 - statistics.fmean(busy.values()))
        causes.append(f"this machine's CPUs were {share:.0f} % busy meanwhile, which delays packets too")
    if moment.timer_resolution_ms > _COARSE_MS:
        causes.append(
            f"this kernel's timers tick every {moment.timer_resolution_ms:.3g} ms: no delay is finer than"
            " that (CONFIG_HIGH_RES_TIMERS is missing, or it was booted with highres=off)"
        )
    elif moment.timer_late_ms > _LATE_MS and not busy and moment.stolen <= _STOLEN_SHARE:
        causes.append(f"this kernel's timers come {moment.timer_late_ms:.1f} ms late, on idle CPUs")
    return causes


class PathMonitor:
    """Watches the machine from its making to `finish`."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._overflow = counters(lease)["overflow"]
        self._passed = _passed(lease)
        self._cpus = _cpu_times()
        self._lost = self._probes = self._others = 0

    def probed(self, probes: int) -> None:
        """The probes are through. What loads a rate's queue from now on overflows it on purpose."""
        self._lost = counters(self._lease)["overflow"] - self._overflow
        self._probes, self._others = probes, max(0, _passed(self._lease) - self._passed - probes)

    def finish(self) -> PathActivity:
        """What was seen; takes a second where a delay line has to report first."""
        idle, stolen = _shares(self._cpus, _cpu_times())
        if self._lease.rules and not self._lease.points:
            time.sleep(_STATS_LATE_S)
            self._lost = counters(self._lease)["overflow"] - self._overflow
        with undisturbed():
            late_ms = statistics.median(_late_ms() for _ in range(5))
        return PathActivity(
            idle=idle,
            stolen=stolen,
            overflow=self._lost,
            timer_resolution_ms=time.clock_getres(time.CLOCK_MONOTONIC) * 1e3,
            timer_late_ms=late_ms,
            probes=self._probes,
            others=self._others,
        )


def path_causes(lease: Lease, leases: Sequence[Lease], flows: Sequence[Flow]) -> list[str]:
    """What stands on the path, or does not, by the kernel's and the leases' own account."""
    causes = []
    state = counters(lease)["in_force"]
    if not state.startswith("yes"):
        causes.append(f"the profile is not on the path ({state.removeprefix('no: ')})")
    causes += applied_twice(leases, flows)
    for sender, _ in flows:
        if own := _own_profile(sender):
            causes.append(own)
            break
    return causes


def met_leases(leases: Sequence[Lease], flow: Flow) -> list[tuple[Lease, str, Pod]]:
    """The leases that a flow's packets meet: each with ``leaving`` or ``entering``, and which pod."""
    sender, receiver = flow
    return [
        (lease, "leaving" if at_sender else "entering", pod)
        for lease in leases
        for at_sender, pod, peer in ((True, sender, receiver), (False, receiver, sender))
        if ("egress" if at_sender else "ingress") in lease.directions
        # Nodes number their namespaces each on its own.
        and any((p.netns_inode, p.node) == (pod.netns_inode, pod.node) for p in lease.pods)
        and (lease.peers is None or any(p.address == peer.address for p in lease.peers))
    ]


def applied_twice(leases: Sequence[Lease], flows: Sequence[Flow]) -> list[str]:
    """The first flow whose packets meet more than one lease, for people; empty: none does."""
    for flow in flows:
        met = met_leases(leases, flow)
        if len(met) > 1:
            where = " and ".join(f"{w} {pod.name} ({o.profile.name}, lease {o.id})" for o, w, pod in met)
            both = {what for _, what, _ in met} == {"leaving", "entering"}
            return [f"{'applied at both ends' if both else 'applied twice'}: {where}"]
    return []


def _own_profile(pod: Pod) -> str | None:
    if not pod.run:
        return None
    try:
        if pod.address in queued_by(pod.node_netns, CHAIN):
            return f"applied twice: {pod.run} has {pod.name} under a delay line of its own"
        with netlink(pod.netns) as ipr:
            index = ipr.link_lookup(ifname=pod.interface)[0]
            found = root_qdisc(ipr, index)
    except (OSError, NetlinkError, IndexError):
        return None
    if found is not None and found.handle == HANDLE:
        return f"applied twice: {pod.run} has {pod.name} under {found.kind} of its own"
    return None


def _passed(lease: Lease) -> int:
    """Packets that have gone through the queues of a rate."""
    if lease.profile.widest.rate_mbit is None:
        return 0
    return sum(count_lease(lease, point).packets for point in lease.points)


def _late_ms() -> float:
    started = time.monotonic()
    time.sleep(_SLEEP_S)
    return (time.monotonic() - started - _SLEEP_S) * 1e3


def _cpu_times() -> dict[str, list[int]]:
    # cpuN user nice system idle iowait irq softirq steal ...
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return {
        words[0]: [int(value) for value in words[1:9]]
        for words in lines
        if words[0].startswith("cpu") and words[0] != "cpu"
    }


def _shares(before: dict[str, list[int]], after: dict[str, list[int]]) -> tuple[dict[str, float], float]:
    idle, stolen, everything = {}, 0, 0
    for cpu in before.keys() & after.keys():
        spent = [b - a for a, b in zip(before[cpu], after[cpu], strict=True)]
        if total := sum(spent):
            idle[cpu] = (spent[3] + spent[4]) / total
            stolen += spent[7]
            everything += total
    return idle, stolen / everything if everything else 0.0
