"""A study whose runs are made on a cluster: all that can be refused is, before anything of it is made there.

Without agents its runs are made on one node, the one on which this runs, one after the other: a run is
watched from the node where its pods are, and two on one node would share its cores, and each be spoiled by
the other. What the largest of its runs asks for has to be left on that node. Through agents:
`nodes_of_study`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ztprobe.errors import PreflightError, UsageError
from ztprobe.experiment.requirements import check_on_cluster
from ztprobe.kubernetes.api import Api, Object
from ztprobe.kubernetes.pod_facts import NODE_NAME
from ztprobe.profile.model import load_profile
from ztprobe.progress import Progress
from ztprobe.runtime.cluster.experiment import experiment_documents
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.refusals import refuse_old, refuse_options
from ztprobe.runtime.cluster.rewriting import RUN_LABEL
from ztprobe.runtime.cluster.traced import traced_pods
from ztprobe.runtime.local.kustomize import Document
from ztprobe.study.cluster_runs import ClusterRuns
from ztprobe.study.plan import Cell, Study
from ztprobe.study.room import Room, asked_by, left_on, shortage
from ztprobe.study.run_maker import options_of

__all__ = ("as_of_cluster", "of_others", "prepared", "refuse_cells", "short_of", "this_node")

_KUBERNETES = "kubernetes"
_WHERE = "--runtime kubernetes"
_FEW = 3
_RUN = "000000"  # of documents of which only the requests are looked at


def prepared(study: Study, place: ClusterPlace, out: Path, progress: Progress) -> tuple[Study, ClusterPlace]:
    """The study as one of a cluster, and the place with its node's name, which keeps all pods there.

    :param out: the study's directory; pods that it knows to be left of an earlier call take no room.
    :param progress: is told what could not be checked.
    :raises UsageError: the plan has something that is not to be had on a cluster, or this is no node of it.
    :raises PreflightError: this node or the cluster lacks something, or has no room, or does not answer.
    """
    refuse_cells(study)
    check_on_cluster([load_profile(name) for name in {c.experiment.profile: 0 for c in study.cells}], None)
    api = place.api()
    study = as_of_cluster(study, place, api)
    try:
        nodes = api.everywhere("nodes", "", "v1") or []
        pods = api.everywhere("pods", "", "v1") or []
    except PreflightError as error:  # whoever may not list them all may still make runs in a namespace
        progress.note(f"which nodes there are, and how much room they have, is not looked at: {error}")
        return study, place
    named = place.node or os.environ.get(NODE_NAME)
    node = this_node(nodes, named)
    others = of_others(pods, ClusterRuns(out, place))
    if (short := short_of(study, place, left_on(node, others))) is not None:
        raise PreflightError(
            f"{short} on node {node['metadata']['name']}, where all of a run's pods have to be"
        )
    return study, dataclasses.replace(place, node=node["metadata"]["name"])


def of_others(pods: Iterable[Object], ours: ClusterRuns) -> list[Object]:
    """Pods that stay where they are: not what is left of our own runs, which goes before a run."""
    left = ours.left()
    return [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(RUN_LABEL) not in left]


def as_of_cluster(study: Study, place: ClusterPlace, api: Api) -> Study:
    """The study as one of a cluster that can run it.

    :raises PreflightError: the cluster is too old, or does not answer.
    """
    api.version()  # whether it answers at all
    refuse_old(api, [cell.experiment.level for cell in study.cells])
    return dataclasses.replace(study, runtime=_KUBERNETES, image=place.image)


def this_node(nodes: Sequence[Object], named: str | None) -> Object:
    """The node on which this runs.

    :param named: what somebody calls it; None: it is called as this host.
    :raises UsageError: the cluster has none of that name.
    """
    name = named or socket.gethostname().lower()
    found = {str(one["metadata"]["name"]): one for one in nodes}
    if name in found:
        return found[name]
    there = sorted(found)
    listed = ", ".join(there[:_FEW]) + (f" and {len(there) - _FEW} more" if len(there) > _FEW else "")
    how = "as --node or NODE_NAME says" if named else "by the host's name"
    raise UsageError(
        f"this is node {name}, {how}, and the cluster has none of that name ({listed or 'it has no nodes'}):"
        " run the sweep on a node, and give its name as --node"
    )


def refuse_cells(study: Study) -> None:
    """:raises UsageError: the plan has something that is not to be had on a cluster."""
    for cell in study.cells:
        _refuse(cell, study)


def _refuse(cell: Cell, study: Study) -> None:
    if cell.congestion_control != Cell.congestion_control:
        raise UsageError(
            f"{cell.name}: congestion_control {cell.congestion_control} is for this machine's own runtime,"
            f" not for {_WHERE}: pods of a cluster keep what it gives them"
        )
    try:
        refuse_options(options_of(study, cell))
    except UsageError as error:
        raise UsageError(f"{cell.name}: {error}") from error


def short_of(study: Study, place: ClusterPlace, left: Room) -> str | None:
    """Which cell's run asks for more than a node has left, and of what; None: there is room for each."""
    asked: dict[tuple[int, int], Room] = {}
    for cell in study.cells:
        kind = (cell.experiment.level, cell.clients)
        if kind not in asked:
            asked[kind] = _asked(traced_pods(_documents(cell, study, place)))
        if (short := shortage(asked[kind], left)) is not None:
            return f"{cell.name}: its pods ask for {short}"
    return None


def _documents(cell: Cell, study: Study, place: ClusterPlace) -> list[Document]:
    return experiment_documents(_RUN, options_of(study, cell), namespace=place.namespace, image=place.image)


def _asked(documents: Iterable[Mapping[str, object]]) -> Room:
    pods = [asked_by(one) for one in documents if one["kind"] == "Pod"]
    return functools.reduce(Room.__add__, pods, Room())
