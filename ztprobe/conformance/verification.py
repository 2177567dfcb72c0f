"""What pods under a lease really get, compared with its profile, and why it differs.

Real datagrams go between each pod and another pod of its node, in the direction that is
shaped, and the same judgement as the trace job's decides (``ztprobe.conformance.judgement``): a
figure fails only when its 99.9 % interval, corrected for the number of figures, excludes the
tolerance. What fails is measured again, because a busy moment is no wrong profile; what still
fails is explained (``ztprobe.conformance.mismatch``). Where the local runtime has NetworkPolicies
in force, they let these datagrams pass for the time (``ztprobe.conformance.policy_bypass``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ztprobe.conformance.judgement import Measured
from ztprobe.conformance.mismatch import Flow, PathMonitor, moment_causes, path_causes
from ztprobe.conformance.policy_bypass import Passage, has_policies, opened
from ztprobe.conformance.udp_probe import Through, probe_flows, rate_flows, warm_up
from ztprobe.errors import EnforcementError
from ztprobe.leases.records import Lease, StepInForce, now_ns
from ztprobe.pods.model import Pod, still_there
from ztprobe.profile.model import Profile

__all__ = (
    "ATTEMPTS",
    "CLOSED_PODS",
    "INTERRUPTIONS",
    "PROBES",
    "Conformance",
    "await_step",
    "probes_take_s",
    "verify",
    "whole_s",
)

PROBES = 1500  # per flow
# Where no probe arrived in a cluster.
CLOSED_PODS = "if a NetworkPolicy of the cluster closes these pods, verify cannot measure them"
_PROBES_PER_S = 8000  # of all flows together: what one thread sends on time
_SHORTEST_S = 1.1
_PROBE_BITS = 106 * 8
_OF_THE_RATE = 0.2
ATTEMPTS = 3
INTERRUPTIONS = 5
_AFTER_PROBES_S = 0.5  # the tail of the probes, and a busy machine
_RATE_EACH_S = 1.1
_KEEPER_LATE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """One lease's measurement and what is wrong with it."""

    lease: Lease
    measured: Measured
    problems: tuple[str, ...]  # empty: the pods get what was asked for
    causes: tuple[str, ...]
    step: int | None = None  # of the profile's schedule, which was in force meanwhile

    @property
    def profile(self) -> Profile:
        """What was compared with: the profile, or the step of its schedule."""
        return self.lease.profile.steps[self.step or 0]

    @property
    def passed(self) -> bool:
        """The pods get the profile."""
        return not self.problems


def verify(
    lease: Lease, leases: Sequence[Lease], pods: Sequence[Pod], *, probes: int = PROBES
) -> Conformance:
    """Measure and judge one lease; takes about 1.5 s and more for many pods or low rates.

    :param leases: all that are in force, for paths that meet more than one.
    :param pods: all that run, to find somebody to talk to.
    :raises EnforcementError: nothing can be measured: no other pod, or nobody left under the lease.
    """
    try:
        return _verify(lease, leases, pods, probes)
    except FileNotFoundError as error:  # a namespace
        gone = error.filename or error
        raise EnforcementError(f"lease {lease.id}: its pods ended meanwhile: {gone} is gone") from error


def _verify(lease: Lease, leases: Sequence[Lease], pods: Sequence[Pod], probes: int) -> Conformance:
    flows = _flows(lease, pods)
    _resolve(flows)
    attempts, interrupted = 1, 0
    while True:
        held = await_step(lease, lambda step: whole_s(step, len(flows), probes), lease.step_in_force)
        if lease.backend == "netem":
            # Which meets ARP too: an answer that is still under way would hold the first probes.
            _resolve(flows)
            time.sleep(2 * lease.profile.steps[0 if held is None else held.step].delay_ms / 1e3)
        profile = lease.profile.steps[0 if held is None else held.step]
        seconds = probes_take_s(profile, len(flows), probes)
        watch = PathMonitor(lease)
        directions = probe_flows(
            flows, profile, probes=probes, seconds=seconds, through=_through(flows, profile, seconds)
        )
        watch.probed(probes * len(flows))
        ways = [_through([flow], profile, _RATE_EACH_S) for flow in flows]
        rates = rate_flows(flows, profile, through=ways)
        measured = Measured(directions=directions, rates=rates, attempts=attempts)
        if held is not None and lease.step_in_force() != held:
            interrupted += 1
            if interrupted < INTERRUPTIONS:
                continue
            raise EnforcementError(f"lease {lease.id}: its profile changed during every measurement")
        problems = measured.problems(profile)
        if not problems or attempts == ATTEMPTS:
            break
        attempts += 1
    causes = []
    if problems:
        causes = [*path_causes(lease, leases, flows), *moment_causes(watch.finish())]
        if lease.runtime == "kubernetes" and not any(d.received for d in measured.directions):
            causes.append(CLOSED_PODS)
    return Conformance(
        lease=lease,
        measured=measured,
        problems=tuple(problems),
        causes=tuple(causes),
        step=None if held is None else held.step,
    )


def probes_take_s(profile: Profile, flows: int, probes: int) -> float:
    """How long so many flows' probes are to take: a fraction of a rate, and what one thread sends on time."""
    seconds = max(_SHORTEST_S, flows * probes / _PROBES_PER_S)
    if profile.rate_mbit is not None:
        seconds = max(seconds, probes * _PROBE_BITS / (profile.rate_mbit * 1e6 * _OF_THE_RATE))
    return seconds


def whole_s(profile: Profile, flows: int, probes: int) -> float:
    """How long a whole measurement takes, with some room."""
    seconds = probes_take_s(profile, flows, probes) + _AFTER_PROBES_S + 4 * profile.delay_ms / 1e3
    if profile.rate_mbit is not None:
        seconds += flows * (_RATE_EACH_S + profile.delay_ms / 1e3)
    return seconds


def await_step(
    lease: Lease, needed_s: Callable[[Profile], float], in_force: Callable[[], StepInForce | None]
) -> StepInForce | None:
    """Wait for a step that lasts long enough from now on; None: the profile has no schedule.

    :param in_force: where the lease is in it now, by this machine's CLOCK_BOOTTIME.
    :raises EnforcementError: no step ever lasts that long, or nobody follows the schedule.
    """
    schedule, steps = lease.profile.schedule, lease.profile.steps
    if schedule is None:
        return None
    lasts_s = [(schedule.duration_ns(index) or 1 << 62) / 1e9 for index in range(len(steps))]
    if not any(lasts >= needed_s(step) for lasts, step in zip(lasts_s, steps, strict=True)):
        longest = max(range(len(steps)), key=lambda index: lasts_s[index])
        raise EnforcementError(
            f"{lease.profile.name}: a measurement takes {needed_s(steps[longest]):.1f} s and no step lasts"
            f" longer than {lasts_s[longest]:g} s, so nothing can be measured between two changes"
        )
    while True:
        held = in_force()
        if held is None:
            raise EnforcementError(f"lease {lease.id}: its keeper has not begun the schedule")
        if held.until_ns is None:
            return held
        left_s = (held.until_ns - now_ns()) / 1e9
        if left_s >= needed_s(steps[held.step]):
            return held
        if left_s < -_KEEPER_LATE_S:
            raise EnforcementError(f"lease {lease.id}: its keeper does not follow the schedule")
        time.sleep(min(max(left_s, 0.0) + 0.01, 0.5))


def _flows(lease: Lease, pods: Sequence[Pod]) -> list[Flow]:
    here = [pod for pod in lease.pods if still_there(pod.netns, pod.netns_inode)]
    if not lease.pods:
        raise EnforcementError(f"lease {lease.id}: no pod is under it at the moment")
    if not here:
        raise EnforcementError(f"lease {lease.id}: none of its pods is there any more")
    own = {pod.netns_inode for pod in here}
    flows = []
    for number, pod in enumerate(here):
        others = lease.peers if lease.peers is not None else (*pods, *here)
        reachable = [
            p
            for p in others
            if p.is_here and p.node_netns == pod.node_netns and p.netns_inode != pod.netns_inode
        ]
        # Somebody who is not under the lease, so that a packet meets it once.
        reachable = [p for p in reachable if p.netns_inode not in own] or reachable
        if not reachable:
            whom = "none of the pods of --to" if lease.peers is not None else "no other pod"
            raise EnforcementError(f"{pod}: {whom} is on its node to measure with")
        same = [p for p in reachable if p.namespace == pod.namespace] or reachable
        other = same[number % len(same)]
        flows += [(pod, other) if direction == "egress" else (other, pod) for direction in lease.directions]
    return flows


def _resolve(flows: Sequence[Flow]) -> None:
    # Where policies are in force, the pods' neighbours are written down, and this would count as dropped.
    open_nodes = {
        node for node in {pod.node_netns for flow in flows for pod in flow} if not has_policies(node)
    }
    distinct = {pod.netns_inode: pod for flow in flows for pod in flow if pod.node_netns in open_nodes}
    warm_up(list(distinct.values()))


def _through(flows: Sequence[Flow], profile: Profile, seconds: float) -> Through:
    # Each flow's way leads through its own node.
    longest_s = seconds + 2 * profile.delay_ms / 1e3

    @contextlib.contextmanager
    def through(tuples: Sequence[Passage]) -> Iterator[None]:
        by_node: dict[Path, list[Passage]] = {}
        for (sender, _), passage in zip(flows, tuples, strict=True):
            by_node.setdefault(sender.node_netns, []).append(passage)
        with contextlib.ExitStack() as stack:
            for node, passages in by_node.items():
                stack.enter_context(opened(node, passages, longest_s))
            yield

    return through
