"""A node's leases for somebody elsewhere: on pods that its agent has placed, and as it has planned them.

Paths and numbers of namespaces that come from outside are not acted on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ztprobe.agent.interface import LeaseRequest, Leases, LeaseState
from ztprobe.errors import UsageError
from ztprobe.leases.records import Lease
from ztprobe.pods.model import NOWHERE, Pod

__all__ = ("PlacedLeases",)


class PlacedLeases:
    """`ztprobe.agent.interface.Leases`, narrowed.

    :param placed: pods by name, as this node's kernel has them.
    """

    def __init__(self, leases: Leases, placed: Mapping[str, Pod]) -> None:
        self._leases, self._placed = leases, placed
        self._planned: dict[str, Lease] = {}

    def plan_lease(self, wanted: LeaseRequest) -> Lease:
        """See `Leases`. :raises UsageError: a pod was not placed."""
        pods = tuple(self._known(pod) for pod in wanted.pods)
        if unknown := [str(said) for said, pod in zip(wanted.pods, pods, strict=True) if pod is None]:
            raise UsageError(f"{unknown[0]}: the agent has found no such pod on its node")
        peers = None
        if wanted.peers is not None:
            peers = tuple(self._known(pod) or _address_alone(pod) for pod in wanted.peers)
        ours = dataclasses.replace(wanted, pods=tuple(filter(None, pods)), peers=peers)
        lease = self._leases.plan_lease(ours)
        self._planned[lease.id] = lease
        return lease

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
