"""Leases of several nodes through their agents: one `profile apply` is a lease of one name on each node.

All nodes plan before any begins, so that what one refuses is put nowhere; and where one cannot begin, what
the others have begun is ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from ztprobe.agent.interface import LeaseRequest
from ztprobe.agent.service.client import Connection
from ztprobe.agent.service.lease_client import LeaseClient, at_node
from ztprobe.errors import PreflightError, UsageError, ZtprobeError
from ztprobe.leases.records import Lease, new_id, words
from ztprobe.pods.model import Pod
from ztprobe.process.interrupts import shielded

if TYPE_CHECKING:
    from ztprobe.agent.service.wire import Tls

__all__ = ("NodesLeases",)

_PATIENCE_S = 10.0
_AT_ONCE = 16
_FEW = 3

_Found = TypeVar("_Found")


class NodesLeases:
    """See the module; a context manager, which ends its sessions and no lease.

    :param addresses: of the agents, by node.
    :param tls: None: they listen on sockets of this machine.
    """

    def __init__(self, addresses: Mapping[str, str], tls: Tls | None) -> None:
        self._addresses, self._tls = addresses, tls
        self._open = contextlib.ExitStack()
        self.clients: dict[str, LeaseClient] = {}  # by node
        # Nodes without a lease of what was planned last, though pods may come there, and why.
        self.unfollowed: dict[str, str] = {}

    def __enter__(self) -> NodesLeases:
        return self

    def __exit__(self, *_: object) -> None:
        with shielded():
            self._open.close()

    def open(self, nodes: Iterable[str]) -> dict[str, ZtprobeError]:
        """A session with each of these nodes' agents that has none yet.

        :returns: why there is none, by node.
        """
        wanted = [node for node in nodes if node not in self.clients]
        made, failed = self._at_each(wanted, self._connected)
        self.clients |= made
        return failed

    def _connected(self, node: str) -> LeaseClient:
        connection = Connection(self._addresses[node], self._tls, patience_s=_PATIENCE_S)
        self._open.callback(connection.close)
        client = LeaseClient(node, connection)
        self._open.callback(client.leave)  # here: whoever waits for it may be interrupted
        return client

    def plan(self, wanted: LeaseRequest) -> dict[str, Lease]:
        """What would be done, by node; nothing is changed.

        Where further pods are followed, nodes that have none yet are among them, if their agents can.

        :param wanted: pods of any node, of which the names, addresses and UIDs are known.
        :raises PreflightError: a pod's node has no agent, or its kernel cannot emulate the profile.
        :raises ZtprobeError: a node refuses.
        """
        nodes = sorted({pod.node for pod in wanted.pods})
        _refuse_without_agent(wanted.pods, self._addresses)
        request = dataclasses.replace(wanted, lease_id=new_id())
        try:
            _raise_first(self.open(nodes))
            planned, failed = self._at_each(nodes, lambda node: self._planned(node, request))
            _raise_first(failed)
        except ZtprobeError as error:
            raise _and(error, "nothing was put on any node", for_node=True) from error
        return planned | (self._planned_ahead(request) if wanted.follow is not None else {})

    def _planned_ahead(self, request: LeaseRequest) -> dict[str, Lease]:
        """On nodes without such pods. One that cannot hinders none of the others."""
        nodes = sorted(self._addresses.keys() - {pod.node for pod in request.pods})
        failed = self.open(nodes)
        reached = [node for node in nodes if node not in failed]
        planned, refused = self._at_each(reached, lambda node: self._planned(node, request))
        self.unfollowed = {
            node: str(error).removeprefix(f"node {node}: ") for node, error in (failed | refused).items()
        }
        for node, lease in list(planned.items()):
            if lease.follow is None:
                self.unfollowed[node] = lease.why_not_followed
                del planned[node]
        return planned

    def _planned(self, node: str, wanted: LeaseRequest) -> Lease:
        client = self.clients[node]
        mine = [pod for pod in wanted.pods if pod.node == node]
        peers = [pod for pod in wanted.peers or () if pod.node == node]
        found = client.place([*mine, *peers])
        by_uid = {pod.uid: pod for pod in found.pods}
        for pod in mine:
            if pod.uid not in by_uid:
                raise PreflightError(found.unseen.get(pod.name, f"{pod}: its agent does not find it"))
        towards = None
        if wanted.peers is not None:
            towards = tuple(by_uid.get(pod.uid, pod) if pod.uid else pod for pod in wanted.peers)
        pods = tuple(by_uid[pod.uid] for pod in mine)
        follow = None if wanted.follow is None else dataclasses.replace(wanted.follow, node=node)
        return client.plan_lease(dataclasses.replace(wanted, pods=pods, peers=towards, follow=follow))

    @contextlib.contextmanager
    def begun(self, planned: Mapping[str, Lease], tell: Callable[[str], None]) -> Iterator[None]:
        """Put planned leases into force, beyond the body, unless that breaks off: then none of them is left.

        :param tell: called with a line for each node of which that is not known.
        :raises ZtprobeError: a node could not.
        """
        try:
            _, failed = self._at_each(planned, lambda node: self.clients[node].begin_lease(planned[node]))
            _raise_first(failed)
            yield
        except BaseException as error:
            with shielded():
                left = self._take_back(planned)
            for line in left:
                tell(line)
            if isinstance(error, ZtprobeError) and not left:
                raise _and(error, "nothing of it is left on any node") from error
            raise

    def _take_back(self, planned: Mapping[str, Lease]) -> list[str]:
        def end(node: str) -> None:
            with contextlib.suppress(UsageError):  # it never began there
                self.clients[node].end_leases([planned[node].id])

        _, failed = self._at_each(planned, end)
        lines = []
        for node, error in failed.items():
            lease = planned[node]
            lasts = words((lease.expires_ns - lease.created_ns) / 1e9)
            lines.append(
                f"{error}; lease {lease.id} may be in force there, for {lasts} at most: ztprobe profile clear"
                f" {lease.id} --agents"
            )
        return lines

    def _at_each(
        self, nodes: Collection[str], work: Callable[[str], _Found]
    ) -> tuple[dict[str, _Found], dict[str, ZtprobeError]]:
        """The same work at all nodes at once: what came of it, and why nothing did; both by node."""
        if not nodes:
            return {}, {}
        found: dict[str, _Found] = {}
        failed: dict[str, ZtprobeError] = {}
        with ThreadPoolExecutor(min(_AT_ONCE, len(nodes)), "node-leases") as threads:
            asked: dict[str, Any] = {node: threads.submit(work, node) for node in nodes}
            wait(asked.values())
        for node, future in asked.items():
            try:
                found[node] = future.result()
            except ZtprobeError as error:
                failed[node] = at_node(node, error)
        return found, failed


def _refuse_without_agent(pods: Iterable[Pod], addresses: Mapping[str, str]) -> None:
    without = [f"{pod} on {pod.node}" for pod in pods if pod.node not in addresses]
    if without:
        more = f" and {len(without) - _FEW} more" if len(without) > _FEW else ""
        there = ", ".join(sorted(addresses)) or "none"
        raise PreflightError(
            f"{', '.join(without[:_FEW])}{more}: no agent was asked there (agents: {there}); nothing was"
            " put on any node: ztprobe deploy agent puts one on every node"
        )


def _raise_first(failed: Mapping[str, ZtprobeError]) -> None:
    for error in failed.values():
        others = sorted(failed.keys() - {next(iter(failed))})
        raise _and(error, f"{', '.join(others)} could not either") if others else error


def _and(error: ZtprobeError, what: str, *, for_node: bool = False) -> ZtprobeError:
    text = f"{error}; {what}"
    if for_node:  # what a node's agent advises is for whoever is on the node
        text = re.sub(r"(ztprobe profile clear [0-9a-f]{6})\b", r"\1 --agents", text)
    told = type(error)(text)
    told.exit_code = error.exit_code
    return told
