"""A node's leases for somebody elsewhere: on pods that its agent has placed, and as it has planned them.

Paths and numbers of namespaces that come from outside are not acted on. Pods that come while a lease lasts
are those that this node's own API says to be on it, and that are found in its cgroups.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from ztprobe.agent.coming_pods import why_unheard
from ztprobe.agent.interface import LeaseRequest, Leases, LeaseState
from ztprobe.errors import UsageError
from ztprobe.kubernetes.pod_facts import NODE_NAME
from ztprobe.leases.following import Following
from ztprobe.leases.records import Lease
from ztprobe.pods.model import NOWHERE, Pod

__all__ = ("PlacedLeases",)


class PlacedLeases:
    """`ztprobe.agent.interface.Leases`, narrowed.

    :param placed: pods by name, as this node's kernel has them.
    :param unheard: why nobody says here which pods a selector means in a namespace; empty: an API does.
    """

    def __init__(
        self,
        leases: Leases,
        placed: Mapping[str, Pod],
        unheard: Callable[[str, str], str] = why_unheard,
    ) -> None:
        self._leases, self._placed, self._unheard = leases, placed, unheard
        self._planned: dict[str, Lease] = {}

    def plan_lease(self, wanted: LeaseRequest) -> Lease:
        """See `Leases`. :raises UsageError: a pod was not placed."""
        pods = tuple(self._known(pod) for pod in wanted.pods)
        if unknown := [str(said) for said, pod in zip(wanted.pods, pods, strict=True) if pod is None]:
            raise UsageError(f"{unknown[0]}: the agent has found no such pod on its node")
        peers = None
        if wanted.peers is not None:
            peers = tuple(self._known(pod) or _address_alone(pod) for pod in wanted.peers)
        follow, why_not = self._followed(wanted)
        ours = dataclasses.replace(wanted, pods=tuple(filter(None, pods)), peers=peers, follow=follow)
        lease = self._leases.plan_lease(ours)
        lease.why_not_followed = why_not or lease.why_not_followed
        self._planned[lease.id] = lease
        return lease

    def _followed(self, wanted: LeaseRequest) -> tuple[Following | None, str]:
        """Further pods are those of this node, as its own API says them; and why there are none, if so.

        :raises UsageError: they are not a cluster's.
        """
        if wanted.follow is None:
            return None, ""
        if wanted.follow.runtime != "kubernetes":
            raise UsageError("an agent follows a cluster's pods, and no others")
        if why_not := self._unheard(wanted.namespace, wanted.selector):
            return None, why_not
        node = os.environ.get(NODE_NAME) or wanted.follow.node
        return dataclasses.replace(wanted.follow, node=node, runs=()), ""

    def begin_lease(self, lease: Lease) -> None:
        """See `Leases`. :raises UsageError: it was not planned here."""
        planned = self._planned.pop(lease.id, None)
        if planned is None:
            raise UsageError(f"the agent has planned no lease {lease.id}")
        self._leases.begin_lease(planned)

    def leases(self) -> list[LeaseState]:
        """See `Leases`."""
        return self._leases.leases()

    def end_leases(self, ids: Sequence[str]) -> list[Lease]:
        """See `Leases`."""
        return self._leases.end_leases(ids)

    def _known(self, said: Pod) -> Pod | None:
        found = self._placed.get(said.name)
        if found is None or (found.namespace, found.uid) != (said.namespace, said.uid):
            return None
        return found


def _address_alone(pod: Pod) -> Pod:
    return dataclasses.replace(
        pod,
        netns=NOWHERE,
        netns_inode=0,
        interface="",
        host_interface="",
        node_netns=NOWHERE,
        other_interfaces=(),
    )
