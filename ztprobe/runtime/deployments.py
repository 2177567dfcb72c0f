"""Which kind of runtime brings a deployment up: the one place that knows them all by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ztprobe.paths import MANIFESTS_DIR
from ztprobe.progress import Progress, QuietProgress
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.interface import Runtime, WorkloadOptions
from ztprobe.runtime.local.journal import appearing_whole, clean_leftovers

if TYPE_CHECKING:
    from ztprobe.runtime.cluster.run_nodes import RunNodes

__all__ = ("appearing_whole", "clean_leftovers", "make")


def make(
    kind: str,
    options: WorkloadOptions,
    *,
    run_id: str,
    log_dir: Path,
    offloads: bool,
    congestion_control: str = "cubic",
    manifests_dir: Path = MANIFESTS_DIR,
    as_admitted: bool = False,
    place: ClusterPlace | None = None,
    nodes: RunNodes | None = None,
    progress: Progress | None = None,
) -> Runtime:
    """A runtime over the workload's manifests, which has touched nothing yet.

    :param kind: ``local`` or ``kubernetes``.
    :param run_id: unique among live runs; part of every name on the machine.
    :param log_dir: where containers' output goes; created if need be.
    :param offloads: leave segmentation offloads of the pods' interfaces on.
    :param congestion_control: of the pods' connections.
    :param manifests_dir: with an overlay for each level.
    :param as_admitted: take manifests that an API server takes, and that cannot be meant.
    :param place: on which cluster, of ``kubernetes``.
    :param nodes: of that, which the pods may be on; None: this one alone.
    :param progress: is told what a cluster's pods wait for.
    :raises UsageError: the manifests ask for something that is not supported.
    """
    from ztprobe.runtime.cluster.runtime import ClusterRuntime
    from ztprobe.runtime.local.runtime import LocalRuntime

    if kind == "kubernetes":
        return ClusterRuntime(
            options,
            place or ClusterPlace(),
            run_id,
            log_dir,
            progress or QuietProgress(),
            offloads=offloads,
            manifests_dir=manifests_dir,
            nodes=nodes,
        )
    if kind != "local":
        raise ValueError(f"no such runtime: {kind}")
    return LocalRuntime(
        options,
        run_id=run_id,
        log_dir=log_dir,
        offloads=offloads,
        congestion_control=congestion_control,
        manifests_dir=manifests_dir,
        as_admitted=as_admitted,
    )
