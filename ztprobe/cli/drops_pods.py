"""The pods that ``ztprobe drops`` watches, what is in force there, and what their packet filters count."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe import paths
from ztprobe.errors import UsageError

if TYPE_CHECKING:
    from analysis.results.drops_live import Deployment
    from analysis.results.packet_filter import PacketFilter
    from ztprobe.cli.agent_options import AgentAccess
    from ztprobe.kubernetes.access import ClusterAccess
    from ztprobe.kubernetes.watched import WatchedCluster
    from ztprobe.pods.model import Pod
    from ztprobe.policy.model import Objects

__all__ = ("CLUSTER", "UNKNOWN", "FilterCounts", "LiveRequest", "WatchedPods")

UNKNOWN = "by a packet filter; the policies in force are not known (-f gives them)"


CLUSTER = "cluster"  # what its deployment is called


@dataclass(frozen=True, kw_only=True)
class LiveRequest:
    """What the command line asks."""

    cluster: ClusterAccess | None  # None: of the local runtime's pods
    agents: AgentAccess | None  # None: of this machine's pods
    selector: str | None
    namespace: str | None
    run: str | None
    pods: tuple[str, ...]
    reasons: tuple[str, ...]
    matching: PacketFilter | None
    objects: Objects | None
    seconds: float | None  # None: until Ctrl-C
    pcap: Path | None
    as_json: bool


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _watched(access: ClusterAccess) -> WatchedCluster:
    from ztprobe.kubernetes.watched import WatchedCluster

    return WatchedCluster(access.api(), access.namespace, node=access.node)


class WatchedPods:
    """The pods that run, and what is in force among them."""

    def __init__(self, request: LiveRequest) -> None:
        from ztprobe.pods.selectors import parse_selector

        self._request = request
        self._selector = parse_selector(request.selector or "")
        self.pods: tuple[Pod, ...] = ()
        self.deployments: list[Deployment] = []
        self.chosen: set[tuple[str, str]] = set()  # run and pod; only with a selector
        self._seen: Any = None
        self._cluster = None if request.cluster is None else _watched(request.cluster)

    def look(self) -> bool:
        """Whether something has changed since the last time."""
        if self._cluster is not None:
            return self._look_at_cluster(self._cluster)
        from ztprobe.pods.live_objects import objects_in_force
        from ztprobe.pods.local import local_pods

        pods = [pod for pod in local_pods() if self._request.run in (None, pod.run)]
        runs = sorted({pod.run for pod in pods})
        in_force = {run: objects_in_force(paths.STATE_DIR / run) for run in runs}
        seen = ([(pod.run, pod.name, pod.netns_inode) for pod in pods], in_force)
        if seen == self._seen:
            return False
        self._seen, self.pods = seen, tuple(pods)
        self.deployments = []
        for run in runs:
            with contextlib.suppress(OSError):  # it has just ended
                self.deployments.append(self._deployment(run, in_force[run]))
        self.chosen = {
            (pod.run, pod.name)
            for pod in pods
            if self._request.namespace in (None, pod.namespace) and self._selector.matches(pod.labels)
        }
        return True

    def _look_at_cluster(self, cluster: WatchedCluster) -> bool:
        from ztprobe.policy.simulation import merged

        cluster.look()
        pods, in_force = cluster.pods, cluster.in_force
        seen = ([(pod.name, pod.netns_inode) for pod in pods], [since for since, _ in in_force])
        if seen == self._seen:
            return False
        self._seen, self.pods = seen, pods
        self.chosen = {(CLUSTER, pod.name) for pod in pods if self._selector.matches(pod.labels)}
        # Policies know pods on every node, and by them a packet's other end has a name.
        everywhere = known.pods if (known := in_force[-1][1]) is not None else ()
        names = {str(address): pod.name for pod in everywhere for address in pod.addresses}
        if self._request.objects is not None:
            in_force = [(0, merged(self._request.objects, everywhere))]
        self.deployments = [self._deployment_of(CLUSTER, pods, in_force, names)]
        return True

    def check(self) -> None:
        """:raises UsageError: what is asked for is not there, and is not to be waited for."""
        request = self._request
        if not self.pods and request.seconds is not None and request.cluster is not None:
            raise UsageError(
                f"no pod of namespace {request.cluster.namespace} runs on this node: wait for pods with "
                "--follow, or say which node this is with --node"
            )
        if not self.pods and request.seconds is not None:
            where = f"--run {request.run}: no such run is going on" if request.run else "no pods are running"
            raise UsageError(
                f"{where}: start one in another terminal (ztprobe trace ...), name a saved RUN, or wait for"
                " pods with --follow"
            )
        if self.pods and self.selects and not self.chosen:
            labels = sorted({f"{pod.namespace}/{pod.name}" for pod in self.pods})
            raise UsageError(
                f"--selector or --namespace picks none of the pods that run: {', '.join(labels)}"
            )
        names = {"node", *(pod.name for pod in self.pods)}
        for name in request.pods if self.pods else ():
            if name not in names and not _is_address(name):
                raise UsageError(f"--pod {name}: no such pod runs, there are {', '.join(sorted(names))}")

    def fresh_notes(self) -> Collection[str]:
        """For people, since the last time."""
        return () if self._cluster is None else self._cluster.fresh_notes()

    def coverage(self) -> str:
        """What was not watched, for people: nothing is left out here."""
        return ""

    @property
    def selects(self) -> bool:
        """Whether only some pods are asked for; what a cluster's node drops besides is not."""
        return (
            self._request.cluster is not None
            or self._request.selector is not None
            or self._request.namespace is not None
        )

    def _deployment(self, run: str, in_force: Sequence[Any]) -> Deployment:
        from analysis.recorded import policy_pods, read_recorded
        from ztprobe.policy.simulation import merged

        pods = [pod for pod in self.pods if pod.run == run]
        as_policies_see = policy_pods([pod.as_dict() for pod in pods])
        objects: list[tuple[int, Objects | None]] = [
            (each.since_ns, read_recorded(each.objects, paths.STATE_DIR / run)) for each in in_force
        ]
        if self._request.objects is not None:
            objects = [(0, self._request.objects)]
        with_pods = [
            (since, None if each is None else merged(each, as_policies_see)) for since, each in objects
        ]
        return self._deployment_of(run, pods, with_pods or [(0, None)])

    def _deployment_of(
        self,
        name: str,
        pods: Sequence[Pod],
        in_force: Sequence[tuple[int, Objects | None]],
        elsewhere: Mapping[str, str] | None = None,
    ) -> Deployment:
        """:param elsewhere: address -> pod, of others."""
        from analysis.results.drop_explanations import DropExplainer
        from analysis.results.drops_live import Deployment
        from ztprobe.kernelnet.netns import inode

        places = {inode(pod.node_netns): "node" for pod in pods}
        return Deployment(
            name=name,
            places=places | {pod.netns_inode: pod.name for pod in pods},
            names={**(elsewhere or {}), **{pod.address: pod.name for pod in pods}},
            explainers=[(since, DropExplainer(each, unknown=UNKNOWN)) for since, each in in_force],
        )


class FilterCounts:
    """What the packet filters of local runs have counted themselves: an account that is none of ours."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._nodes: dict[str, Path] = {}
        self.seen: dict[str, int] = {}  # run -> packets that we saw a filter drop in its node

    def look(self, pods: Iterable[Pod]) -> None:
        """These are watched from now on."""
        for run, node in {pod.run: pod.node_netns for pod in pods}.items():
            if run not in self._nodes:
                self._nodes[run], self._first[run] = node, _dropped_by_filter(node) or 0

    def differences(self) -> dict[str, tuple[int, int]]:
        """Run -> what its filter has dropped since, and how many more these are than we have seen."""
        found = {}
        for run, node in self._nodes.items():
            if (last := _dropped_by_filter(node)) is not None:
                own = last - self._first[run]
                found[run] = (own, own - self.seen.get(run, 0))
        return found


def _dropped_by_filter(node: Path) -> int | None:
    """By its policies' table; None: there is none, or the run has ended."""
    from ztprobe.errors import EnforcementError
    from ztprobe.runtime.local import firewall

    try:
        counted = firewall.counters(node)
    except (EnforcementError, OSError, ValueError, KeyError):
        return None
    return sum(packets for name, packets in counted.items() if name.startswith("drop_"))
