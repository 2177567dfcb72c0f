"""On which of a cluster's nodes a study's runs are made through their agents, one at a time on each.

A run has a node to itself: two on one would share its cores. So a node takes part if pods may be put there,
the largest of the runs has room there, and its kernel can do every profile of the plan. Nodes that are one
machine (of one boot id: a cluster in containers or in network namespaces) share its cores, and the first of
them by name stands for all. Which nodes take no part, and why, is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.report.wording import listed
from ztprobe.agent.service.client import Connection
from ztprobe.agent.service.node_session import addresses_by_node
from ztprobe.agent.service.session import GIVEN_UP_S
from ztprobe.emulation.backends import only_rate
from ztprobe.errors import PreflightError, ZtprobeError
from ztprobe.kubernetes.api import Object
from ztprobe.profile.model import load_profile
from ztprobe.progress import Progress
from ztprobe.runtime.cluster.agent_nodes import RunAgents
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.study.cluster_runs import ClusterRuns
from ztprobe.study.on_cluster import as_of_cluster, of_others, refuse_cells, short_of
from ztprobe.study.plan import Study
from ztprobe.study.room import left_on

if TYPE_CHECKING:
    from ztprobe.kubernetes.agents import AgentAddress

__all__ = ("await_free", "places_of")

_ASK_S = 10.0  # for what a node offers
_KEEP_AWAY = ("NoSchedule", "NoExecute")  # taints that the workload's pods do not tolerate
_FEW = 3
_FREE_S = GIVEN_UP_S + 30.0  # an agent waits so long for a collector that was killed, and some more
_POLL_S = 1.0


def places_of(
    study: Study, place: ClusterPlace, agents: RunAgents, out: Path, progress: Progress
) -> tuple[Study, list[ClusterPlace]]:
    """The study as one of a cluster, and a place on each node that takes part, in the order of their names.

    :param out: the study's directory; pods that it knows to be left of an earlier call take no room.
    :param progress: is told which nodes take part and which do not.
    :raises UsageError: the plan has something that is not to be had on a cluster.
    :raises PreflightError: no node can take part, or the cluster or an agent does not answer.
    """
    refuse_cells(study)
    api = place.api()
    study = as_of_cluster(study, place, api)
    addresses = addresses_by_node(agents.addresses, agents.tls)
    nodes = {str(one["metadata"]["name"]): one for one in api.everywhere("nodes", "", "v1") or []}
    pods = of_others(api.everywhere("pods", "", "v1") or [], ClusterRuns(out, place))
    delays = next((one for one in _profiles(study) if not only_rate(load_profile(one))), None)
    why_not: dict[str, str] = {}
    places: list[ClusterPlace] = []
    machines: dict[str, str] = {}  # boot id -> node
    for name, address in sorted(addresses.items()):
        why = _unfit(nodes.get(name)) or short_of(study, place, left_on(nodes[name], pods))
        if why is None and delays is not None:
            why = _without_delays(address, agents, delays)
        boot = _facts(nodes.get(name)).get("bootID") or name
        if why is None and boot in machines:
            why = f"is the same machine as {machines[boot]} (boot id {boot}), and would share its cores"
        if why is not None:
            why_not[name] = why
            continue
        machines[boot] = name
        alone = RunAgents(addresses=(dataclasses.replace(address, node=name),), tls=agents.tls)
        places.append(dataclasses.replace(place, node=name, agents=alone))
    if not places:
        found = [f"node {name}: {why}" for name, why in list(why_not.items())[:_FEW]]
        more = f", and {len(why_not) - _FEW} more" if len(why_not) > _FEW else ""
        raise PreflightError(f"no node with an agent can make the study's runs: {'; '.join(found)}{more}")
    for name, why in why_not.items():
        progress.note(f"node {name}: no run is made there: {why}")
    there = [str(one.node) for one in places]
    progress.note(f"runs are made on {listed(there)}, one at a time on each")
    if kinds := _differences([nodes[name] for name in there]):
        progress.note(f"nodes differ, and times with them: {'; '.join(kinds)}")
    return study, places


def await_free(agents: RunAgents, progress: Progress) -> None:
    """Wait until agents are at work for nobody, as long as one of them waits for a collector that was killed.

    Whether that has helped the run itself says, and whether they answer.

    :param progress: is told what is waited for.
    """
    for agent in agents.addresses:
        until_s, told = time.monotonic() + _FREE_S, False
        with (
            contextlib.suppress(ZtprobeError),
            contextlib.closing(Connection(agent.address, agents.tls, patience_s=0)) as connection,
        ):
            while (run := _at_work_for(connection.status())) is not None and time.monotonic() < until_s:
                if not told:
                    progress.note(f"its agent is at work for run {run}: waiting until that has ended")
                told = True
                time.sleep(_POLL_S)


def _at_work_for(status: Mapping[str, Any]) -> str | None:
    for session in status["sessions"]:
        if session["watching"] and session["silent_s"] <= GIVEN_UP_S:
            return str(session["run"])
    return None


def _profiles(study: Study) -> Iterable[str]:
    return dict.fromkeys(cell.experiment.profile for cell in study.cells)


def _unfit(node: Object | None) -> str | None:
    """Why no pod of ours would be put there."""
    if node is None:
        return "the cluster has none of that name"
    if node.get("spec", {}).get("unschedulable"):
        return "is cordoned"
    for taint in node.get("spec", {}).get("taints") or ():
        if taint.get("effect") in _KEEP_AWAY:
            return f"has the taint {taint.get('key')}:{taint['effect']}"
    ready = [one for one in node["status"].get("conditions") or () if one.get("type") == "Ready"]
    if any(one.get("status") != "True" for one in ready):
        return "is not ready"
    return None


def _without_delays(address: AgentAddress, agents: RunAgents, profile: str) -> str | None:
    try:
        with contextlib.closing(Connection(address.address, agents.tls, patience_s=_ASK_S)) as connection:
            can_delay = connection.offers()["delay"] is not None
    except ZtprobeError as error:
        return str(error)
    return None if can_delay else f"its kernel has no netem (CONFIG_NET_SCH_NETEM), which {profile} takes"


def _facts(node: Object | None) -> Mapping[str, Any]:
    return (node or {}).get("status", {}).get("nodeInfo") or {}


def _differences(nodes: list[Object]) -> list[str]:
    """What nodes are, one after the other; empty: all are alike."""
    kinds = {
        str(node["metadata"]["name"]): (
            f"{(node['status'].get('capacity') or {}).get('cpu', '?')} CPUs,"
            f" {_facts(node).get('architecture') or '?'}, Linux {_facts(node).get('kernelVersion') or '?'}"
        )
        for node in nodes
    }
    return [f"{name} {kind}" for name, kind in kinds.items()] if len(set(kinds.values())) > 1 else []
