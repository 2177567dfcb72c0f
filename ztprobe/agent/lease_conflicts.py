"""A pod is under one lease in a direction, and under no other."""

from __future__ import annotations

from collections.abc import Sequence

from ztprobe.errors import EnforcementError
from ztprobe.leases import records
from ztprobe.leases.records import Lease
from ztprobe.pods.model import Pod, still_there

__all__ = ("refuse_taken",)


def refuse_taken(pods: Sequence[Pod], directions: Sequence[str], leases: Sequence[Lease]) -> None:
    """:raises EnforcementError: one of the pods is under one of the leases in one of the directions."""
    # By its namespace: after a restart, a pod of the same name is another one, though the kernel may have
    # given its namespace the number of the one that is gone.
    inodes = {pod.netns_inode for pod in pods}
    for lease in leases:
        taken = [
            pod for pod in lease.pods if pod.netns_inode in inodes and still_there(pod.netns, pod.netns_inode)
        ]
        if taken and set(lease.directions) & set(directions):
            raise EnforcementError(
                f"{min(str(pod) for pod in taken)} is under {lease.profile.name} already (lease {lease.id}, "
                f"{records.words(lease.remaining_s)} left): ztprobe profile clear {lease.id}"
            )
