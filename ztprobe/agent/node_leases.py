"""The leases of one node: planned, begun, looked at and ended, without the one who asked having to stay."""

from __future__ import annotations

from collections.abc import Sequence

from ztprobe.agent import lease_keeper
from ztprobe.agent.interface import LeaseRequest, LeaseState
from ztprobe.agent.lease_conflicts import refuse_taken
from ztprobe.conformance.policy_bypass import has_policies
from ztprobe.conformance.udp_probe import warm_up
from ztprobe.emulation.apply import backend_for, plan_rules
from ztprobe.emulation.attach_points import plan_points
from ztprobe.emulation.counters import counters
from ztprobe.errors import EnforcementError, PreflightError, UsageError
from ztprobe.leases import records
from ztprobe.leases.records import Lease
from ztprobe.process.identity import ProcessIdentity
from ztprobe.process.interrupts import shielded

__all__ = ("NodeLeases",)

_FEW_PODS = 32  # everybody speaks to everybody


class NodeLeases:
    """`ztprobe.agent.interface.Leases` in this process."""

    def plan_lease(self, wanted: LeaseRequest) -> Lease:
        """See `Leases`."""
        taken = records.all_leases()
        directions = ("egress", "ingress") if wanted.direction == "both" else (wanted.direction,)
        refuse_taken(wanted.pods, directions, taken)
        backend = backend_for(wanted.profile, wanted.backend)
        _refuse_impossible(wanted, backend)
        follow, why_not = wanted.follow, ""
        if follow is not None and "nfqueue" in backend:
            follow, why_not = None, "a delay line is for the pods with which it begins"
        lease_id, now_ns = wanted.lease_id or records.new_id(), records.now_ns()
        _refuse_name(lease_id, taken)
        return Lease(
            id=lease_id,
            profile=wanted.profile,
            backend=backend,
            direction=wanted.direction,
            selector=wanted.selector,
            to=wanted.to,
            namespace=wanted.namespace,
            pods=wanted.pods,
            peers=wanted.peers,
            points=plan_points(
                wanted.pods, directions, backend, replace=wanted.replace, at=wanted.at, lease_id=lease_id
            ),
            rules=plan_rules(lease_id, wanted.pods, directions, backend, taken),
            owner=ProcessIdentity.own(),
            created_ns=now_ns,
            expires_ns=now_ns + round(wanted.lasts_s * 1e9),
            follow=follow,
            why_not_followed=why_not,
        )

    def begin_lease(self, lease: Lease) -> None:
        """See `Leases`."""
        _resolve_neighbours(lease)
        with shielded():
            lease_keeper.keep(lease)

    def leases(self) -> list[LeaseState]:
        """See `Leases`."""
        return [
            LeaseState(
                lease=lease, counted=counters(lease), step=lease.step_in_force(), followed=lease.followed()
            )
            for lease in records.all_leases()
        ]

    def end_leases(self, ids: Sequence[str]) -> list[Lease]:
        """See `Leases`."""
        chosen = records.named(records.all_leases(), ids)
        with shielded():
            for lease in chosen:
                lease_keeper.end(lease)
        return chosen


def _refuse_name(lease_id: str, taken: Sequence[Lease]) -> None:
    if not records.is_id(lease_id):  # it names a directory
        raise UsageError(f"{lease_id!r} is no name of a lease: expected six hexadecimal digits")
    if any(lease.id == lease_id for lease in taken):
        raise EnforcementError(f"there is a lease {lease_id} already: ztprobe profile clear {lease_id}")


def _refuse_impossible(wanted: LeaseRequest, backend: str) -> None:
    runtimes = {pod.runtime for pod in wanted.pods}
    if wanted.follow is not None:
        runtimes.add(wanted.follow.runtime)
    if "nfqueue" in backend and "kubernetes" in runtimes:
        raise PreflightError(
            f"{wanted.profile.name} needs netem on a cluster's node (CONFIG_NET_SCH_NETEM), and this kernel"
            " has none or it was not chosen: the delay line that stands in for it queues on a node's forward"
            " path, which is the cluster's own here; a rate alone works without"
        )


def _resolve_neighbours(lease: Lease) -> None:
    """Make pods of the local runtime know each other before packets can be lost or late.

    Not where policies are in force, which would drop and count what it takes (neighbours are written
    down there anyway), and not in a cluster, whose pods are not ours to send from.
    """
    met = list({pod.netns_inode: pod for pod in (*lease.pods, *(lease.peers or ()))}.values())
    if not lease.pods or len(met) > _FEW_PODS or any(pod.runtime != "local" for pod in met):
        return
    try:
        if not any(has_policies(node) for node in {pod.node_netns for pod in met}):
            warm_up(met)
    except FileNotFoundError as error:
        raise EnforcementError(f"the pods are ending: {error.filename or error} is gone") from error
