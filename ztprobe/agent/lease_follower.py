"""A lease held for what its selector means: pods that come get its profile, those that go are let go.

Each device is written down in the lease's record before it is touched, as those of the first pods were:
`clear`, the next command after SIGKILL and an agent's end work from that. One pod that cannot be had (another
lease, somebody else's qdisc) is left out, said, and tried again; it hinders none of the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable

from ztprobe.agent.coming_pods import ComingPod, ComingPods, identity
from ztprobe.agent.lease_conflicts import refuse_taken
from ztprobe.emulation.apply import put_into_force, revert
from ztprobe.emulation.attach_points import plan_points
from ztprobe.emulation.peer_filters import change_peers
from ztprobe.errors import ZtprobeError
from ztprobe.kernelnet.interfaces import sent_packets
from ztprobe.kernelnet.netlink import NetlinkError
from ztprobe.leases import records
from ztprobe.leases.following import Following, FollowState, PodSince
from ztprobe.leases.records import Lease, Point
from ztprobe.pods.model import Pod, still_there

__all__ = ("LeaseFollower", "first_pods")

_AGAIN_S = 1.0  # what could not be done is tried again
_HOST_END_S = 1.0  # how long the other end of a pod's veth is waited for
_COMPLETE_S = 0.1
_COMPLETE_FOR_NS = 60 * 10**9
_REFUSALS = (OSError, ZtprobeError, NetlinkError)


def first_pods(lease: Lease) -> FollowState:
    """What is known of the pods that a lease begins with, right after it was put into force."""
    found = []
    for pod in lease.pods:
        found.append(
            PodSince(
                pod=str(pod),
                since_ns=records.now_ns(),
                came_later=False,
                sent_before=None,
                sent_after=_sent(pod),
                gap_ms=None,
            )
        )
    return FollowState(pods=tuple(found))


class LeaseFollower:
    """Keeps a lease, which is in force, to its selector; whoever has it calls `look` again and again.

    :param lease: is changed, and written down.
    """

    def __init__(self, lease: Lease, follow: Following, coming: ComingPods) -> None:
        self._lease, self._follow, self._coming = lease, follow, coming
        self._under = {identity(pod): pod for pod in lease.pods}
        first = zip(map(identity, lease.pods), first_pods(lease).pods, strict=True)
        self._since = dict(first)
        self._numbered = len(lease.points)
        self._left_out: dict[str, tuple[str, str]] = {}  # identity -> the pod, and why
        self._again_s: dict[str, float] = {}  # identity -> when it is tried again
        self._completed_s = self._peers_s = 0.0
        self._peers: frozenset[str] | None = None  # those that the filters are for; None: they are unknown
        if lease.peer_addresses is not None:
            self._peers = frozenset(lease.peer_addresses)
        self._written: FollowState | None = None

    @property
    def is_over(self) -> bool:
        """Nobody is under the lease, and nobody can come."""
        return not self._lease.pods and not self._coming.may_come

    def look(self) -> None:
        """See who has come and who has gone."""
        left = [
            pod
            for pod in self._lease.pods
            if not still_there(pod.netns, pod.netns_inode) or not self._coming.is_meant(pod)
        ]
        self._let_go(left)
        now_s = time.monotonic()
        waiting = {key for key, at_s in self._again_s.items() if at_s > now_s}
        there = self._coming.look(self._under.keys() | waiting)
        for key in self._again_s.keys() - waiting - {identity(one.pod) for one in there}:
            self._remember_no_more(key)  # it has gone
        for one in there:
            if self._is_whole(one, now_s):
                self._take(one)
        self._complete(now_s)
        self._follow_peers(now_s)
        self._tell()

    def close(self) -> None:
        """Look no more."""
        self._coming.close()

    def _let_go(self, left: Iterable[Pod]) -> None:
        for pod in left:
            part = self._part(pod)
            revert(part)  # an IFB device of the node stays where its pod is gone
            self._forget(pod, part.points)
            self._since.pop(identity(pod), None)

    def _part(self, pod: Pod) -> Lease:
        """The lease, of one pod alone."""
        places = {(pod.netns, pod.interface), (pod.node_netns, pod.host_interface)}
        points = tuple(
            point
            for point in self._lease.points
            if point.pod == str(pod) and (point.netns, point.interface) in places
        )
        return dataclasses.replace(self._lease, pods=(pod,), points=points, rules=())

    def _forget(self, pod: Pod, points: Iterable[Point]) -> None:
        gone = set(map(id, points))
        self._lease.pods = tuple(one for one in self._lease.pods if one is not pod)
        self._lease.points = tuple(one for one in self._lease.points if id(one) not in gone)
        self._under.pop(identity(pod), None)
        self._write()

    def _is_whole(self, one: ComingPod, now_s: float) -> bool:
        """Whether all that is needed of its network is known, or will not be."""
        at, ways = self._follow.at, self._lease.directions
        needs_end = at == "host" or (at == "auto" and "ingress" in ways)
        if not needs_end or one.pod.host_interface:
            return True
        return now_s - (one.without_s or 0.0) > _HOST_END_S

    def _take(self, one: ComingPod) -> None:
        pod, key = one.pod, identity(one.pod)
        if any(other.netns_inode == pod.netns_inode for other in self._lease.pods):
            self._under[key] = pod  # by another of its names
            return
        try:
            points = self._written_down(pod)
        except _REFUSALS as error:
            self._leave_out(pod, error)
            return
        part = dataclasses.replace(self._lease, pods=(pod,), points=points, rules=())
        try:
            before = _sent(pod)
            put_into_force(part, self._lease.profile_now)
            since_ns, in_force_s = records.now_ns(), time.monotonic()
            after = _sent(pod)
        except _REFUSALS as error:
            revert(part)
            self._forget(pod, points)
            self._leave_out(pod, error)
            return
        self._under[key] = pod
        self._remember_no_more(key)
        self._since[key] = PodSince(
            pod=str(pod),
            since_ns=since_ns,
            came_later=True,
            sent_before=before,
            sent_after=after,
            gap_ms=None if one.without_s is None else round((in_force_s - one.without_s) * 1e3, 3),
        )

    def _written_down(self, pod: Pod) -> tuple[Point, ...]:
        """Plan a pod's devices, and make them the lease's before any is touched."""
        lease = self._lease
        with records.being_changed():
            refuse_taken([pod], lease.directions, [one for one in records.all_leases() if one.id != lease.id])
            points = plan_points(
                [pod],
                lease.directions,
                lease.backend,
                replace=self._follow.replace,
                at=self._follow.at,
                lease_id=lease.id,
                first=self._numbered,
            )
            before = lease.pods, lease.points
            lease.pods, lease.points = (*lease.pods, pod), (*lease.points, *points)
            try:
                lease.write()
            except BaseException:
                lease.pods, lease.points = before
                raise
        self._numbered += len(points)
        return points

    def _leave_out(self, pod: Pod, error: Exception) -> None:
        self._again_s[identity(pod)] = time.monotonic() + _AGAIN_S
        if still_there(pod.netns, pod.netns_inode):  # else it has ended meanwhile
            self._left_out[identity(pod)] = str(pod), str(error)

    def _remember_no_more(self, key: str) -> None:
        self._again_s.pop(key, None)
        self._left_out.pop(key, None)

    def _complete(self, now_s: float) -> None:
        """Addresses and the ends of veths come after the interface; a pod is talked to by its address."""
        if now_s - self._completed_s < _COMPLETE_S:
            return
        self._completed_s = now_s
        completed = False
        for pod in self._lease.pods:
            since = self._since.get(identity(pod))
            if since is None or not since.came_later or (pod.address and pod.host_interface):
                continue
            if records.now_ns() - since.since_ns > _COMPLETE_FOR_NS:
                continue  # it has none
            try:
                whole = self._coming.complete(pod)
            except (OSError, NetlinkError, ValueError):
                continue  # it is ending
            if whole != pod:
                self._lease.pods = tuple(whole if one is pod else one for one in self._lease.pods)
                self._under[identity(pod)] = whole
                completed = True
        if completed:
            self._write()

    def _follow_peers(self, now_s: float) -> None:
        peers = self._coming.peers
        if peers is None or self._peers is None or now_s < self._peers_s:
            return
        addresses = frozenset(peer.address for peer in peers)
        if addresses == self._peers:
            return
        known = {(peer.name, peer.address): peer for peer in self._lease.peers or ()}
        self._lease.peers = tuple(
            known.get((peer.name, peer.address)) or self._coming.located(peer) for peer in peers
        )
        self._write()
        try:
            for point in self._lease.points:
                if still_there(point.netns, point.netns_inode):
                    change_peers(point, addresses)
            self._peers = addresses
        except _REFUSALS:  # a pod that is ending; what stays so is seen in the kernel's account
            self._peers_s = now_s + _AGAIN_S

    def _write(self) -> None:
        # What cannot be written now names more than there is, and that is looked for and not found.
        with contextlib.suppress(ZtprobeError):
            self._lease.write()

    def _tell(self) -> None:
        held = FollowState(
            pods=tuple(self._since[key] for key in self._since if key in self._under),
            left_out={**self._coming.refused, **dict(self._left_out.values())},
            problem=self._coming.problem,
        )
        if held != self._written:
            self._lease.write_following(held)
            self._written = held


def _sent(pod: Pod) -> int | None:
    try:
        return sent_packets(pod.netns, pod.interface)
    except OSError:  # it has ended meanwhile
        return None
