"""What pods under a lease really get, compared with its profile, and why it differs.

Real datagrams go between each pod and another pod of its node, in the direction that is
shaped, and the same judgement as the trace job's decides (``ztprobe.emulation.measured``): a
figure fails only when its 99.9 % interval, corrected for the number of figures, excludes the
tolerance. What fails is measured again, because a busy moment is no wrong profile; what still
fails is explained from what is known about the path, not guessed from the figure alone.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ztprobe.emulation.counters import counters
from ztprobe.emulation.measured import Measured
from ztprobe.emulation.nodequeue import CHAIN, queued_by
from ztprobe.emulation.probing import probe_flows, rate_flows, warm_up
from ztprobe.emulation.qdisc import HANDLE, root_qdisc
from ztprobe.errors import EnforcementError
from ztprobe.leases import Lease
from ztprobe.netlink import NetlinkError, netlink
from ztprobe.netns import entered
from ztprobe.pods import RunningPod

__all__ = ("PROBES", "Verdict", "verify")

PROBES = 1500  # per flow
_PROBES_PER_S = 8000  # of all flows together: what one thread sends on time
_SHORTEST_S = 1.1
_PROBE_BITS = 106 * 8
_OF_THE_RATE = 0.2
_ATTEMPTS = 3
_BUSY_IDLE_SHARE = 0.1
_LATE_TIMER_MS = 1.0

Flow = tuple[RunningPod, RunningPod]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One lease's measurement and what is wrong with it."""

    lease: Lease
    measured: Measured
    problems: tuple[str, ...]  # empty: the pods get what was asked for
    causes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """The pods get the profile."""
        return not self.problems


def verify(
    lease: Lease, leases: Sequence[Lease], pods: Sequence[RunningPod], *, probes: int = PROBES
) -> Verdict:
    """Measure and judge one lease; takes about 1.5 s and more for many pods or low rates.

    :param leases: all that are in force, for paths that meet more than one.
    :param pods: all that run, to find somebody to talk to.
    :raises EnforcementError: nothing can be measured: no other pod, or policies in force between them.
    """
    flows = _flows(lease, pods)
    for node in {pod.node_netns for flow in flows for pod in flow}:
        if _has_policies(node):
            raise EnforcementError(
                f"NetworkPolicies are in force in {node.name}: they would drop the probes and count them;"
                " verify needs a run under sec0 or sec2"
            )
    profile = lease.profile
    seconds = max(_SHORTEST_S, len(flows) * probes / _PROBES_PER_S)
    if profile.rate_mbit is not None:
        seconds = max(seconds, probes * _PROBE_BITS / (profile.rate_mbit * 1e6 * _OF_THE_RATE))
    warm_up(_distinct(flows))
    attempts = 1
    while True:
        overflow, idle = counters(lease)["overflow"], _cpu_times()
        measured = Measured(
            directions=probe_flows(flows, profile, probes=probes, seconds=seconds),
            attempts=attempts,
        )
        causes = _moment_causes(idle)
        if lost := counters(lease)["overflow"] - overflow:
            causes.append(f"a queue overflowed: {lost} packets were dropped that nobody asked to lose")
        measured = Measured(
            directions=measured.directions, rates=rate_flows(flows, profile), attempts=attempts
        )
        problems = measured.problems(profile)
        if not problems or attempts == _ATTEMPTS:
            break
        attempts += 1
    causes = _path_causes(lease, leases, flows) + causes if problems else []
    return Verdict(lease=lease, measured=measured, problems=tuple(problems), causes=tuple(causes))


def _flows(lease: Lease, pods: Sequence[RunningPod]) -> list[Flow]:
    own = {pod.address for pod in lease.pods}
    flows = []
    for number, pod in enumerate(lease.pods):
        others = lease.peers if lease.peers is not None else pods
        reachable = [p for p in others if p.node_netns == pod.node_netns and p.address != pod.address]
        # Somebody who is not under the lease, so that a packet meets it once.
        reachable = [p for p in reachable if p.address not in own] or reachable
        if not reachable:
            raise EnforcementError(f"{pod}: no other pod on its node to measure with")
        same = [p for p in reachable if p.namespace == pod.namespace] or reachable
        other = same[number % len(same)]
        flows += [(pod, other) if direction == "egress" else (other, pod) for direction in lease.directions]
    return flows


def _distinct(flows: Sequence[Flow]) -> list[RunningPod]:
    return list({pod.address: pod for flow in flows for pod in flow}.values())


def _has_policies(node: Path) -> bool:
    with entered(node):
        done = subprocess.run(["nft", "list", "tables", "ip"], capture_output=True, text=True, check=False)
    return "ztprobe_policy" in done.stdout


def _path_causes(lease: Lease, leases: Sequence[Lease], flows: Sequence[Flow]) -> list[str]:
    causes = []
    state = counters(lease)["in_force"]
    if state != "yes":
        causes.append(f"the profile is not on the path ({state.removeprefix('no: ')})")
    for sender, receiver in flows:
        met = [
            (other, "leaving" if at_sender else "entering", pod)
            for other in leases
            for at_sender, pod, peer in ((True, sender, receiver), (False, receiver, sender))
            if ("egress" if at_sender else "ingress") in other.directions
            and any(p.address == pod.address for p in other.pods)
            and (other.peers is None or any(p.address == peer.address for p in other.peers))
        ]
        if len(met) > 1:
            where = " and ".join(f"{w} {pod.name} ({o.profile.name}, lease {o.id})" for o, w, pod in met)
            both = {what for _, what, _ in met} == {"leaving", "entering"}
            causes.append(f"{'applied at both ends' if both else 'applied twice'}: {where}")
            break
    for sender, _ in flows:
        if own := _own_profile(sender):
            causes.append(own)
            break
    return causes


def _own_profile(pod: RunningPod) -> str | None:
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


def _moment_causes(before: tuple[int, int]) -> list[str]:
    causes = []
    after = _cpu_times()
    total = after[1] - before[1]
    if total and (after[0] - before[0]) / total < _BUSY_IDLE_SHARE:
        busy = 100 * (1 - (after[0] - before[0]) / total)
        causes.append(f"this machine's CPUs were {busy:.0f} % busy meanwhile, which delays packets too")
    late_ms = statistics.median(_late_ms() for _ in range(5))
    if late_ms > _LATE_TIMER_MS:
        causes.append(f"this kernel's timers come {late_ms:.1f} ms late (no high-resolution timers?)")
    return causes


def _late_ms() -> float:
    started = time.monotonic()
    time.sleep(0.0005)
    return (time.monotonic() - started - 0.0005) * 1e3


def _cpu_times() -> tuple[int, int]:
    # cpu user nice system idle iowait irq softirq steal ...
    values = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return values[3] + values[4], sum(values)
