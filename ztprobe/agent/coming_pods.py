"""Pods that a lease's selector means and that come while it lasts: told by an API or a journal, found here.

The API says early that a pod of some UID is to be on this node; this node's kernel says when a process in a
cgroup of that name is there, and its network. Only what both say is acted on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ztprobe import paths
from ztprobe.kernelnet.netlink import NetlinkError
from ztprobe.kubernetes.api import Api, configured
from ztprobe.kubernetes.followed_pods import FollowedPods
from ztprobe.leases.records import Lease
from ztprobe.pods.cgroup import find_namespaces, lasting
from ztprobe.pods.local import local_pods
from ztprobe.pods.model import Pod, still_there
from ztprobe.pods.placing import placed_early
from ztprobe.pods.selectors import parse_selector
from ztprobe.pods.sightings import Sightings

__all__ = (
    "ClusterComing",
    "ComingPod",
    "ComingPods",
    "LocalComing",
    "identity",
    "pods_coming",
    "why_unheard",
)

_SOON_S, _SELDOM_S = 5.0, 0.5
_ANSWER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ComingPod:
    """A pod that has an interface. Times are CLOCK_MONOTONIC, in seconds."""

    pod: Pod
    # When either nothing of it ran yet or it had no interface; None: nobody had looked before it had both.
    without_s: float | None


class ComingPods(Protocol):
    """Whom a lease is to hold for."""

    @property
    def problem(self) -> str:
        """Why further pods are not heard of just now; empty: they are."""
        ...

    @property
    def refused(self) -> Mapping[str, str]:
        """Pods that the selector means -> why no profile may be on them."""
        ...

    def look(self, under: Collection[str]) -> list[ComingPod]:
        """The pods that are there now. :param under: identities of those that need not be looked at."""
        ...

    def is_meant(self, pod: Pod) -> bool:
        """Whether the selector still means it, as far as anybody has said."""
        ...

    def complete(self, pod: Pod) -> Pod:
        """A pod with what has become known of its network since. :raises OSError: it is gone."""
        ...

    def located(self, pod: Pod) -> Pod:
        """A peer with its network, if it runs on this node."""
        ...

    @property
    def peers(self) -> tuple[Pod, ...] | None:
        """Whom traffic is shaped towards; None: anyone, or nobody has said it yet."""
        ...

    @property
    def may_come(self) -> bool:
        """Whether further pods are possible at all."""
        ...

    def close(self) -> None:
        """Look no more; idempotent."""
        ...


def identity(pod: Pod) -> str:
    """Tells a pod from a later one of the same name."""
    return pod.uid or f"{pod.run}/{pod}/{pod.netns_inode}"


class ClusterComing:
    """`ComingPods` of a cluster's node.

    :param followed: what the API says; it is begun here.
    """

    def __init__(self, followed: FollowedPods, sightings: Sightings | None = None) -> None:
        self._followed = followed.__enter__()
        self._sightings = sightings or Sightings()
        self._asked_for: set[str] = set()  # UIDs that were seen, and for which the API has been asked
        self._without_s: dict[str, float] = {}
        # Processes by which they were found may end before the lease does.
        self._others: tuple[Path, ...] = tuple(map(lasting, find_namespaces().others))

    @property
    def problem(self) -> str:
        """See `ComingPods`."""
        return self._followed.problem

    @property
    def refused(self) -> Mapping[str, str]:
        """See `ComingPods`."""
        return self._followed.said.refused if self._followed.said is not None else {}

    def look(self, under: Collection[str]) -> list[ComingPod]:
        """See `ComingPods`."""
        self._sightings.look()
        seen = self._sightings.pods
        said = self._followed.said
        wanted = said.pods if said is not None else {}
        if unknown := seen.keys() - self._asked_for - wanted.keys():
            self._asked_for |= unknown
            self._followed.ask_now()
        self._asked_for &= seen.keys()
        found = []
        for uid in wanted.keys() & seen.keys():
            if uid not in under and (one := self._found(uid, wanted[uid])) is not None:
                found.append(one)
        self._without_s = {uid: at_s for uid, at_s in self._without_s.items() if uid in seen}
        return sorted(found, key=lambda one: str(one.pod))

    def _found(self, uid: str, pod: Pod) -> ComingPod | None:
        sighting, now_s = self._sightings.pods[uid], time.monotonic()
        without_s = self._without_s.get(uid)
        if without_s is not None and now_s - sighting.since_s > _SOON_S and now_s - without_s < _SELDOM_S:
            return None  # it takes long to get a network
        netns = self._sightings.netns(uid)
        placed = None
        if netns is not None:
            with contextlib.suppress(OSError, NetlinkError, ValueError):  # it ends, or its link just moves
                placed = placed_early(pod, netns, self._others)
        if placed is None:
            self._without_s[uid] = now_s
            return None
        if without_s is None and sighting.unseen_s < sighting.since_s:
            without_s = sighting.unseen_s
        return ComingPod(pod=placed, without_s=without_s)

    def is_meant(self, pod: Pod) -> bool:
        """See `ComingPods`."""
        said = self._followed.said
        return said is None or pod.uid not in said.relabelled

    def complete(self, pod: Pod) -> Pod:
        """See `ComingPods`."""
        said = self._followed.said
        known = said.pods.get(pod.uid) if said is not None else None
        address = known.address if known is not None and known.address else pod.address
        found = placed_early(dataclasses.replace(pod, address=address), pod.netns, self._others)
        return pod if found is None or found.interface != pod.interface else found

    def located(self, pod: Pod) -> Pod:
        """See `ComingPods`."""
        netns = self._sightings.netns(pod.uid)
        if netns is not None:
            with contextlib.suppress(OSError, NetlinkError, ValueError):  # it is ending
                return placed_early(pod, netns, self._others) or pod
        return pod

    @property
    def peers(self) -> tuple[Pod, ...] | None:
        """See `ComingPods`."""
        return self._followed.said.peers if self._followed.said is not None else None

    @property
    def may_come(self) -> bool:
        """See `ComingPods`."""
        return True

    def close(self) -> None:
        """See `ComingPods`."""
        self._followed.__exit__()


class LocalComing:
    """`ComingPods` of runs of the local runtime, which write their pods down when they make them."""

    problem = ""

    def __init__(
        self, lease: Lease, runs: Collection[str], find: Callable[[], list[Pod]] = local_pods
    ) -> None:
        self._selector, self._namespace = parse_selector(lease.selector), lease.namespace
        self._to = parse_selector(lease.to) if lease.to is not None else None
        self._runs, self._find = frozenset(runs), find
        self._written: dict[str, int] | None = None  # run -> when its journal was; None: not looked yet
        self._looked_s: float | None = None
        self._since_s: dict[str, float | None] = {}  # when a pod was not there yet
        self._pods: list[Pod] = []
        self.refused: Mapping[str, str] = {}

    def look(self, under: Collection[str]) -> list[ComingPod]:
        """See `ComingPods`."""
        self._read()
        return [
            ComingPod(pod=pod, without_s=self._since_s[identity(pod)])
            for pod in self._pods
            if pod.namespace == self._namespace
            and self._selector.matches(pod.labels)
            and identity(pod) not in under
            and still_there(pod.netns, pod.netns_inode)
        ]

    def _read(self) -> None:
        before_s, self._looked_s = self._looked_s, time.monotonic()
        written = {}
        for run in self._runs:
            with contextlib.suppress(OSError):  # it has ended
                written[run] = os.stat(paths.STATE_DIR / run / "journal.json").st_mtime_ns
        if written != self._written:
            self._written = written
            self._pods = [pod for pod in self._find() if pod.run in self._runs]
            for pod in self._pods:
                self._since_s.setdefault(identity(pod), before_s)

    def is_meant(self, pod: Pod) -> bool:
        """See `ComingPods`."""
        return True  # a run's labels do not change

    def complete(self, pod: Pod) -> Pod:
        """See `ComingPods`."""
        return pod

    def located(self, pod: Pod) -> Pod:
        """See `ComingPods`."""
        return pod

    @property
    def peers(self) -> tuple[Pod, ...] | None:
        """See `ComingPods`."""
        if self._to is None or not self._written:
            return None
        return tuple(
            pod for pod in self._pods if pod.namespace == self._namespace and self._to.matches(pod.labels)
        )

    @property
    def may_come(self) -> bool:
        """See `ComingPods`."""
        return any((paths.STATE_DIR / run / "journal.json").exists() for run in self._runs)

    def close(self) -> None:
        """See `ComingPods`."""


def why_unheard(namespace: str, selector: str) -> str:
    """Why nobody says here which pods a selector means; empty: a cluster's API does.

    It is asked once, and given a few seconds.
    """
    if not configured():
        return "no cluster's API can be asked from there (no service account, no kubeconfig)"
    followed = FollowedPods(Api, namespace, selector, node="", to=None)
    asking = threading.Thread(target=followed.look, daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    if asking.is_alive():
        return f"the Kubernetes API does not answer within {_ANSWER_S:g} s"
    return followed.problem


def pods_coming(lease: Lease) -> ComingPods | None:
    """Whom a lease is to hold for while it lasts; None: the pods that it has."""
    follow = lease.follow
    if follow is None:
        return None
    if follow.runtime == "local":
        return LocalComing(lease, follow.runs)
    return ClusterComing(
        FollowedPods(
            Api,
            lease.namespace,
            lease.selector,
            node=follow.node,
            to=lease.to,
            services=tuple(peer for peer in lease.peers or () if not peer.uid),
        )
    )
