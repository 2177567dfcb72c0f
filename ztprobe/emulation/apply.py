"""A profile on pods that run already: planned, put into force, read back, lifted.

Where it acts is planned in ``ztprobe.emulation.attach_points``; the delay line stands as rules where the
node forwards. `--to` makes the root an HTB that shapes nothing by itself (what no filter picks
passes by in its direct queue), with one class for the peers' addresses. Where packets have to be
met one by one (jitter, loss), a token bucket without a noticeable rate stands above netem: it
segments what an application's kernel sends as one GSO packet of up to 64 KB.

Everything that is needed to revert it stands in the lease, so `revert` needs nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from ztprobe.emulation.attach_points import (
    LEASE_HANDLE,
    add_ifb,
    own_profile,
    redirect,
    redirected,
    remove_redirect,
)
from ztprobe.emulation.backends import choose_backend, only_rate, refusal
from ztprobe.emulation.delay_line.node import CHAIN, NodeQueue, QueuedPod, queued_by, remove_rules
from ztprobe.emulation.delay_line.process import MAX_PODS
from ztprobe.emulation.netem import netem_options, netem_supported, set_netem
from ztprobe.emulation.peer_filters import PEERS_CLASS, classify
from ztprobe.emulation.tbf import set_tbf
from ztprobe.errors import EnforcementError, PreflightError
from ztprobe.kernelnet.netlink import IPRoute, NetlinkError, netlink
from ztprobe.kernelnet.netns import inode
from ztprobe.kernelnet.root_qdisc import LinkSpot, RootQdisc, qdisc_at, remove_ours, root_qdisc
from ztprobe.kernelnet.rtnetlink import DELAY_DISTRIBUTION, links
from ztprobe.leases.qdisc_snapshot import restore_snapshot
from ztprobe.leases.records import Lease, NodeRules, Point
from ztprobe.pods.model import Pod, still_there
from ztprobe.profile.model import Profile

__all__ = ("LeaseCounts", "backend_for", "count_lease", "plan_rules", "put_into_force", "revert")

_BELOW = 0x5A72_0000
_BELOW_CLASS = _BELOW | 1
_SEGMENTED = 0x5A73_0000
_FIRST_QUEUE = 1000
_QUEUES_EACH = MAX_PODS
# Segments are at most as large as the bucket: one frame, not two.
_SEGMENTING_BYTES_PER_S, _SEGMENTING_BURST_BYTES = 1_000_000_000, 2500


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeaseCounts:
    """What stands at a point now, and what it has counted."""

    in_force: bool
    found: str  # the kind at the root, or nothing
    packets: int
    drops: int


def backend_for(profile: Profile, wanted: str | None) -> str:
    """The backend that will do it.

    :param wanted: one by name; None: the kernel's best.
    :raises PreflightError: it cannot do the profile; says what and why.
    """
    if wanted is None:
        return choose_backend(profile, netem=only_rate(profile) or netem_supported())
    if wanted == "nfqueue" and profile.widest.rate_mbit is not None:
        wanted = "nfqueue+tbf"
    if wanted == "netem" and not netem_supported():
        raise PreflightError("this kernel has no netem (CONFIG_NET_SCH_NETEM): leave --backend out")
    if (reason := refusal(profile, wanted)) is not None:
        raise PreflightError(f"{profile.name}: {reason}")
    return wanted


def plan_rules(
    lease_id: str, pods: Sequence[Pod], directions: Sequence[str], backend: str, taken: Sequence[Lease]
) -> tuple[NodeRules, ...]:
    """One delay line for each node's namespace; changes nothing.

    :param taken: the leases that are in force.
    :raises EnforcementError: a pod is under its run's own delay line, or there are too many pods.
    """
    if "nfqueue" not in backend:
        return ()
    used = {rules.first_queue for lease in taken for rules in lease.rules}
    first = next(n for n in range(_FIRST_QUEUE, 60_000, _QUEUES_EACH) if n not in used)
    planned = []
    for node in dict.fromkeys(pod.node_netns for pod in pods):
        if not node.exists():
            raise EnforcementError(f"{pods[0]}: its network cannot be entered: {node} is gone")
        here = [pod for pod in pods if pod.node_netns == node]
        if len(here) > MAX_PODS:
            raise EnforcementError(f"{len(here)} pods on one node: a delay line holds at most {MAX_PODS}")
        if "egress" in directions:
            under = queued_by(node, CHAIN)
            for pod in here:
                if pod.address in under:
                    raise EnforcementError(f"{pod}: {own_profile(pod.run)}")
        chain = f"ZTPROBE-{lease_id}"
        planned.append(NodeRules(netns=node, netns_inode=inode(node), chain=chain, first_queue=first))
    return tuple(planned)


def put_into_force(lease: Lease, step: Profile | None = None) -> list[NodeQueue]:
    """Put a lease into force and read it back.

    :param step: of its profile's schedule; None: the first, which is all of a profile without.
    :returns: the delay lines that were started; they run as long as this process.
    :raises EnforcementError: the kernel refused, or holds other values than were set.
    """
    started: list[NodeQueue] = []
    step = step or lease.profile.steps[0]
    if lease.points:
        first, *others = lease.points
        _attach_checked(lease, first, step)
        if lease.peers is not None:  # classes and filters are not in a description
            for point in others:
                _attach_checked(lease, point, step)
        else:
            _attach_alike(lease, first, others, step)
    try:
        for rules in lease.rules:
            started.append(_start_queue(lease, rules))
    except BaseException:
        for queue in started:
            queue.stop()
        raise
    return started


def revert(lease: Lease) -> list[str]:
    """Take away what a lease names, whatever state it is in; says what was there, one line each.

    Pods that are gone have taken theirs along. Idempotent.
    """
    report = []
    for rules in lease.rules:
        if still_there(rules.netns, rules.netns_inode) and remove_rules(rules.netns, rules.chain):
            report.append(f"delay line {rules.chain} removed from {rules.netns.name}")
    for point in lease.points:
        if not still_there(point.netns, point.netns_inode):
            continue
        try:
            report += _lift_ifb(lease, point) if point.ifb is not None else _lift_root(lease, point)
        except (OSError, NetlinkError) as error:
            report.append(f"{point.interface} of {point.pod}: {error}")
    return report


def _lift_root(lease: Lease, point: Point) -> list[str]:
    report = []
    with _link(point) as (ipr, index):
        if remove_ours(ipr, index, LEASE_HANDLE):
            report.append(f"{lease.backend} removed from {point.interface} of {point.pod}")
        if point.saved is not None and root_is_default(ipr, index):
            with links(point.netns) as there:
                different = restore_snapshot(there, index, point.saved)
            but = f", but {different}" if different is not None else ""
            report.append(f"{point.saved.kind} put back on {point.interface} of {point.pod}{but}")
    return report


def _lift_ifb(lease: Lease, point: Point) -> list[str]:
    with netlink(point.netns) as ipr:
        if remove_redirect(ipr, point):
            return [f"{lease.backend} removed from what enters by {point.interface} of {point.pod}"]
    return []


def root_is_default(ipr: IPRoute, index: int) -> bool:
    """Nobody has set a root qdisc."""
    found = root_qdisc(ipr, index)
    return found is None or not found.handle


def count_lease(lease: Lease, point: Point) -> LeaseCounts:
    """What a point carries now: the qdisc that shapes, with its counters."""
    try:
        with _link(point) as (ipr, index):
            root = root_qdisc(ipr, index)
            shaping = _deepest(ipr, index, root)
            if point.ifb is not None and not redirected(ipr, point):
                return LeaseCounts(in_force=False, found=f"no redirect to {point.ifb}", packets=0, drops=0)
    except (OSError, NetlinkError):
        return LeaseCounts(in_force=False, found="no interface", packets=0, drops=0)
    ours = root is not None and root.handle == LEASE_HANDLE
    wanted = "netem" if lease.backend == "netem" else "tbf"
    found = root.kind if root is not None else "nothing"
    if shaping is None or not ours:
        return LeaseCounts(in_force=False, found=found, packets=0, drops=0)
    return LeaseCounts(
        in_force=shaping.kind == wanted, found=shaping.kind, packets=shaping.packets, drops=shaping.drops
    )


def _deepest(ipr: IPRoute, index: int, root: RootQdisc | None) -> RootQdisc | None:
    for parent in (_BELOW_CLASS, LEASE_HANDLE | 1, PEERS_CLASS):
        if (found := qdisc_at(ipr, index, parent)) is not None:
            return found
    return root


@contextlib.contextmanager
def _link(point: Point) -> Iterator[tuple[IPRoute, int]]:
    with netlink(point.netns) as ipr:
        found = ipr.link_lookup(ifname=point.device)
        if not found:
            raise OSError(f"{point.pod} has no interface {point.device}")
        yield ipr, int(found[0])


def _attach_checked(lease: Lease, point: Point, step: Profile) -> None:
    add_ifb(point)
    with _link(point) as (ipr, index):
        if point.saved is not None:
            ipr.tc("del", index=index, handle=point.saved.handle, root=True)
        try:
            _attach(ipr, index, lease, point, step)
        except NetlinkError as error:
            raise EnforcementError(
                f"{point.pod}: the kernel refused {lease.backend} for {lease.profile.name}: {error}"
            ) from error
        redirect(ipr, point)


def _attach_alike(lease: Lease, first: Point, others: Sequence[Point], step: Profile) -> None:
    # What the kernel made of the first, which has been compared with the profile, is set on the
    # others and compared with that.
    with links(first.netns) as there:
        wanted = there.qdiscs(there.index(first.device))
    distribution = None
    if lease.backend == "netem":
        distribution = dict(netem_options(step)["attrs"]).get("TCA_NETEM_DELAY_DIST")
    for point in others:
        try:
            add_ifb(point)
            with links(point.netns) as there:
                index = there.index(point.device)
                for parent, qdisc in wanted:
                    table = distribution if qdisc.kind == "netem" else None
                    more = None if table is None else (DELAY_DISTRIBUTION, table)
                    there.put(index, qdisc, parent=parent, more=more)
                if there.qdiscs(index) != wanted:
                    raise EnforcementError(
                        f"{point.pod}: {lease.backend} was read back with other values than set"
                    )
            if point.ifb is not None:
                with netlink(point.netns) as ipr:
                    redirect(ipr, point)
        except OSError as error:
            raise EnforcementError(f"{point.pod}: {lease.profile.name} was refused: {error}") from error


def _attach(ipr: IPRoute, index: int, lease: Lease, point: Point, step: Profile) -> None:
    spot = LinkSpot(ipr=ipr, index=index, pod=point.pod, handle=LEASE_HANDLE)
    addresses = lease.peer_addresses
    if addresses is not None:
        classify(ipr, index, point, addresses)
        spot = dataclasses.replace(spot, parent=PEERS_CLASS, handle=_BELOW)
    if lease.backend != "netem":
        set_tbf(spot, step)
        return
    if lease.profile.per_packet:
        # tc qdisc add ... tbf rate 8gbit burst 2500: larger packets are segmented
        ipr.tc(
            "add",
            "tbf",
            index,
            spot.handle,
            parent=spot.parent,
            rate=_SEGMENTING_BYTES_PER_S,
            burst=_SEGMENTING_BURST_BYTES,
            limit=1 << 30,
        )
        spot = dataclasses.replace(spot, parent=spot.handle | 1, handle=_SEGMENTED)
    set_netem(spot, step)


def _start_queue(lease: Lease, rules: NodeRules) -> NodeQueue:
    queued = [
        QueuedPod(name=str(pod), address=pod.address, directions=lease.directions, peers=lease.peer_addresses)
        for pod in lease.pods
        if pod.node_netns == rules.netns
    ]
    queue = NodeQueue(
        lease.profile,
        queued,
        rules.netns,
        state_directory(lease, rules.netns),
        seed=int(lease.id, 16),
        chain=rules.chain,
        first_queue=rules.first_queue,
    )
    queue.start()
    return queue


def state_directory(lease: Lease, node_netns: Path) -> Path:
    """Where a lease's delay line keeps its configuration and counters."""
    return lease.directory / node_netns.name
