"""The pods of a cluster whose drops agents watch, and which of them nobody watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ztprobe.errors import UsageError
from ztprobe.kubernetes.watched import WatchedCluster

if TYPE_CHECKING:
    from analysis.results.drops_live import Deployment
    from ztprobe.cli.drops_pods import LiveRequest
    from ztprobe.cli.drops_sources import AgentSources
    from ztprobe.kubernetes.access import ClusterAccess
    from ztprobe.pods.model import Pod

__all__ = ("WatchedNodes",)


class WatchedNodes:
    """Like `ztprobe.cli.drops_pods.WatchedPods`, on every node whose agent answers."""

    selects = True  # what nodes drop besides is not asked for

    def __init__(self, request: LiveRequest, cluster: ClusterAccess, agents: AgentSources) -> None:
        from ztprobe.pods.selectors import parse_selector

        self._request, self._agents = request, agents
        self._namespace = cluster.namespace
        self._selector = parse_selector(request.selector or "")
        self._cluster = WatchedCluster(cluster.api(), cluster.namespace, everywhere=True)
        self.pods: tuple[Pod, ...] = ()
        self.deployments: list[Deployment] = []
        self.chosen: set[tuple[str, str]] = set()  # node and pod
        self._seen: Any = None
        self._without: tuple[str, ...] = ()  # nodes of which it was said that they have no agent
        self._unseen: dict[str, str] = {}

    def look(self) -> bool:
        """Whether something has changed since the last time."""
        from ztprobe.policy.simulation import merged

        self._cluster.look()
        pods, in_force, nodes = self._cluster.pods, self._cluster.in_force, self._agents.nodes
        seen = ([(pod.uid, pod.address) for pod in pods], [since for since, _ in in_force], nodes)
        if seen == self._seen:
            return False
        self._seen, self.pods = seen, pods
        mine = [pod.name for pod in pods if self._selector.matches(pod.labels)]
        self.chosen = {(node, pod) for node in nodes for pod in mine}
        everywhere = known.pods if (known := in_force[-1][1]) is not None else ()
        names = {str(address): pod.name for pod in everywhere for address in pod.addresses}
        names |= {pod.address: pod.name for pod in pods}
        if self._request.objects is not None:
            in_force = [(0, merged(self._request.objects, everywhere))]
        self.deployments = [_deployment(node, names, in_force) for node in nodes]
        return True

    def check(self) -> None:
        """:raises UsageError: what is asked for is not there, and is not to be waited for."""
        request = self._request
        if not self.pods and request.seconds is not None:
            raise UsageError(f"no pod of namespace {self._namespace} runs: wait for pods with --follow")
        if self.pods and not self.chosen:
            labels = sorted(str(pod) for pod in self.pods)
            raise UsageError(f"--selector picks none of the pods that run: {', '.join(labels)}")
        names = {"node", *(pod.name for pod in self.pods)}
        for name in request.pods if self.pods else ():
            if name not in names and name not in {pod.address for pod in self.pods}:
                raise UsageError(f"--pod {name}: no such pod runs, there are {', '.join(sorted(names))}")

    def fresh_notes(self) -> Collection[str]:
        """For people, since the last time: nodes and pods that nobody watches, and what the API refuses."""
        notes = [*self._cluster.fresh_notes(), *self._agents.fresh_problems()]
        without = tuple(sorted({pod.node for pod in self.pods} - set(self._agents.nodes) - {""}))
        for node in without if without != self._without else ():
            if node not in self._without and node not in self._agents.asked_nodes:
                notes.append(f"node {node}: has no agent; what is dropped there is not seen")
        self._without = without
        unseen = {pod: why for source in self._agents.sources for pod, why in source.drops.unseen.items()}
        notes += [why for pod, why in unseen.items() if pod not in self._unseen]
        self._unseen = unseen
        return notes

    def coverage(self) -> str:
        """Of how many pods and nodes drops were seen the whole time, for people; empty: of all."""
        by_node = Counter(pod.node for pod in self.pods)
        missed = {source.node for source in self._agents.sources if source.drops.has_missed}
        whole = {node for node in by_node if node in self._agents.nodes and node not in missed}
        pods = sum(by_node[node] for node in whole) - sum(
            len(source.drops.unseen) for source in self._agents.sources if source.node in whole
        )
        if pods == len(self.pods):
            return ""
        share = pods / len(self.pods)
        return (
            f"coverage {share:.0%}: {pods} of {len(self.pods)} pods were watched the whole time, on"
            f" {len(whole)} of {len(by_node)} nodes"
        )


def _deployment(node: str, names: dict[str, str], in_force: Any) -> Deployment:
    from analysis.results.drop_explanations import DropExplainer
    from analysis.results.drops_live import Deployment
    from ztprobe.cli.drops_pods import UNKNOWN

    return Deployment(
        name=node,
        places={},  # the agent says
        names=names,
        explainers=[(since, DropExplainer(each, unknown=UNKNOWN)) for since, each in in_force],
    )
