"""What a lease has done so far, as the kernel and its delay line count it."""

from __future__ import annotations

import json
import time
from typing import Any

from ztprobe.emulation.apply import count_lease, state_directory
from ztprobe.emulation.delay_line import lateness
from ztprobe.emulation.delay_line.node import rules_in_force
from ztprobe.leases.records import Lease
from ztprobe.pods.model import still_there

__all__ = ("counters",)


def counters(lease: Lease) -> dict[str, Any]:
    """What is in force and what was counted.

    :returns: ``in_force`` (yes, or what is wrong), ``lapsed`` (pods that are gone or were restarted,
        which took their part of the lease along), ``packets``, ``drops``, ``overflow`` (drops that nobody
        asked for).
    """
    problems, packets, drops, overflow = [], 0, 0, 0
    if lease.state != "in force":
        problems.append("no: its delay line died" if lease.state == "undelayed" else f"no: {lease.state}")
    if (reason := lease.abandoned) is not None:
        problems.append(f"no keeper: {reason}")
    held = lease.step_in_force()
    if held is not None and held.failed:
        problems.append(f"no: {held.last_problem}")
    lapsed = [str(pod) for pod in lease.pods if not still_there(pod.netns, pod.netns_inode)]
    for point in lease.points:
        if point.pod in lapsed:
            continue
        found = count_lease(lease, point)
        if not found.in_force:
            problems.append(f"no: {point.interface} of {point.pod} has {found.found}")
        if not lease.rules:
            packets += found.packets
        drops += found.drops
        if not lease.profile.widest.mean_loss_pct or lease.backend != "netem":
            overflow += found.drops
    for rules in lease.rules:
        here = [pod for pod in lease.pods if pod.node_netns == rules.netns]
        wanted = len(here) * len(lease.directions) * len(lease.peers or (None,))
        found_rules = rules_in_force(rules.netns, rules.chain) if rules.netns.exists() else 0
        if found_rules != wanted:
            problems.append(f"no: {found_rules} of {wanted} rules of {rules.chain} are in {rules.netns.name}")
        path = state_directory(lease, rules.netns) / "delayline-stats.json"
        try:
            line = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if (late := lateness.problem_in(line, lease.profile_now.mean_ms, time.monotonic_ns())) is not None:
            problems.append(f"not as asked for: {late}")
        packets += sum(line["packets"].values())
        lost_by_queue = line["queue_dropped"] + line["user_dropped"]
        drops += sum(line["dropped"].values()) + lost_by_queue
        overflow += lost_by_queue
    if lapsed and not problems:
        problems.append(f"yes, but lapsed for {', '.join(lapsed)}: restarted or gone")
    if not lease.pods and not problems:
        problems.append("yes, on no pod at the moment")
    return {
        "in_force": problems[0] if problems else "yes",
        "lapsed": lapsed,
        "packets": packets,
        "drops": drops,
        "overflow": overflow,
    }
