"""A pod that somebody else named, with what this node's kernel knows of its network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from ztprobe.errors import EnforcementError, PreflightError
from ztprobe.kernelnet.netns import inode
from ztprobe.pods.cgroup import PodNamespaces, find_namespaces, lasting
from ztprobe.pods.links import PodInterface, first_interface, host_end, pod_interface
from ztprobe.pods.model import NOWHERE, Pod

__all__ = ("placed", "placed_early")

_LOOKS = 3  # at the processes of a pod whose containers begin and end


def placed(pod: Pod, uids: Iterable[str], seen: PodNamespaces) -> Pod:
    """The pod with its namespace, its interface there and the end of its veth outside.

    :param pod: of which names and address are known.
    :param uids: after which its cgroup may be named.
    :raises PreflightError: none of its processes can be seen from here.
    :raises EnforcementError: its network cannot be entered, or is not what was said.
    """
    uids = tuple(uids)
    for _ in range(_LOOKS - 1):
        with contextlib.suppress(OSError):  # the process by which its network was found has ended meanwhile
            return _found(pod, uids, seen)
        seen = find_namespaces()
    try:
        return _found(pod, uids, seen)
    except OSError as error:
        raise EnforcementError(f"{pod}: its network cannot be entered: {error}") from error


def _found(pod: Pod, uids: Iterable[str], seen: PodNamespaces) -> Pod:
    netns = next((seen.pods[uid] for uid in uids if uid in seen.pods), None)
    if netns is None:
        raise PreflightError(_unseen(str(pod), bool(seen.pods)))
    netns = lasting(netns)
    interface = pod_interface(netns, pod.address)
    if interface is None:
        raise EnforcementError(f"{pod}: no interface in its namespace has the address {pod.address}")
    return _with_network(pod, netns, interface, seen.others)


def placed_early(pod: Pod, netns: Path, others: Sequence[Path]) -> Pod | None:
    """A pod that is being brought up, as far as it has a network: its address and the end of its veth outside
    may be missing yet. None: it has no interface, or not the one with the address that the API says.

    :param netns: where a process of it is.
    :param others: where the other end of its veth may be, the likeliest first.
    :raises OSError: the process has ended.
    """
    if pod.address:
        interface = pod_interface(netns, pod.address)
    elif (found := first_interface(netns)) is not None:
        interface, address = found
        pod = dataclasses.replace(pod, address=address)
    else:
        interface = None
    return None if interface is None else _with_network(pod, lasting(netns), interface, others)


def _with_network(pod: Pod, netns: Path, interface: PodInterface, others: Sequence[Path]) -> Pod:
    end = host_end(netns, interface, others)
    return dataclasses.replace(
        pod,
        netns=netns,
        netns_inode=inode(netns),
        interface=interface.name,
        host_interface=end.name if end is not None else "",
        node_netns=lasting(end.netns if end is not None else next(iter(others), NOWHERE)),
    )


def _unseen(name: str, others_are: bool) -> str:
    if others_are:
        return f"{name}: none of its processes is on this node; is this the right node's name (--node)?"
    return (
        f"{name}: no pod's processes can be seen from here: run ztprobe on the node itself as root, or in a"
        " privileged pod with hostPID: true"
    )
