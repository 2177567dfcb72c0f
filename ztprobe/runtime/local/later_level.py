"""The level that a run is to have later: read and checked before anything is made. Pure.

Policies come to what stands. Sidecars need something of what runs from the start: a server that listens
where its sidecar will pass connections on to, too, and lets the sidecar take its port over (SO_REUSEPORT: of
two sockets at a port the kernel prefers the one that is bound to the address, and the server's is bound to
all of them); clients that look up in a file, as the kubelet renews one from a ConfigMap, whom to connect to.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ztprobe.errors import EnforcementError, UsageError
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local import network, placement
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.level import check_level
from ztprobe.runtime.local.workload import ContainerPlan, Mount, PodPlan, Workload, plan

__all__ = ("ADDRESS_FILE", "LaterLevel", "overlay_of", "prepared", "read_later_level")

ADDRESS_FILE = PurePosixPath("/run/fl/server/address")


@dataclass(frozen=True, kw_only=True)
class LaterLevel:
    """What a run is to become."""

    options: WorkloadOptions
    workload: Workload
    placed: Mapping[str, network.PodAddress]
    adds_sidecars: bool
    changes_policies: bool


def overlay_of(manifests_dir: Path, options: WorkloadOptions) -> Path:
    """Where a level's manifests stand. :raises UsageError: there are none with edge aggregators."""
    edges = bool(options.fl.get("edges"))
    overlay = manifests_dir / "overlays" / f"sec{options.level}{'-edges' if edges else ''}"
    if not overlay.is_dir() and edges:
        raise UsageError(f"--fl-edges: {overlay} is missing, which sec{options.level} needs with edges")
    return overlay


def read_later_level(manifests_dir: Path, options: WorkloadOptions, workload: Workload) -> LaterLevel | None:
    """The options' ``later_level``; None: the run keeps its level.

    :param workload: of the level that the run begins with.
    :raises UsageError: it cannot be reached while rounds go on.
    :raises EnforcementError: the manifests are not that level, or differ in more than it.
    """
    if options.later_level is None:
        return None
    later = dataclasses.replace(options, level=options.later_level, later_level=None)
    planned = plan(render(overlay_of(manifests_dir, later)), later)
    placed = placement.place(planned)
    check_level(later, planned, placement.rules(planned, placed))
    adds_sidecars = later.mutual_tls and not options.mutual_tls
    if adds_sidecars and workload.edges:
        raise UsageError(f"sec{later.level}: sidecars of edge aggregators cannot come while rounds go on")
    differing = [
        mine.name
        for mine, other in zip(workload.pods, planned.pods, strict=True)
        if (not _same_but_for_sidecar(mine, other) if adds_sidecars else mine != other)
    ]
    if differing:
        raise EnforcementError(
            f"sec{options.level} cannot become sec{later.level} while rounds go on: their manifests differ in"
            f" the pods {', '.join(differing[:3])}, and what runs is not changed"
        )
    if adds_sidecars:
        address = {"FL_PROXY_ADDRESS": placed[planned.server.name].address}
        planned = dataclasses.replace(planned, server=_with(planned.server, address, to_sidecars=True))
    return LaterLevel(
        options=later,
        workload=planned,
        placed=placed,
        adds_sidecars=adds_sidecars,
        changes_policies=later.network_policy != options.network_policy,
    )


def _same_but_for_sidecar(mine: PodPlan, other: PodPlan) -> bool:
    """Ports belong to whoever has them, and addresses are what `prepared` is about."""
    addresses = {"FL_LISTEN", "FL_SERVER"}
    plans: Sequence[ContainerPlan] = [
        dataclasses.replace(
            pod.application,
            env={name: value for name, value in pod.application.env.items() if name not in addresses},
        )
        for pod in (mine, other)
    ]
    return plans[0] == plans[1] and (mine.labels, mine.service_account) == (
        other.labels,
        other.service_account,
    )


def prepared(workload: Workload, later: LaterLevel | None) -> Workload:
    """The workload with what sidecars that come later need of what runs from the start."""
    if later is None or not later.adds_sidecars:
        return workload
    listen = (
        f"{workload.server.application.env['FL_LISTEN']},{later.workload.server.application.env['FL_LISTEN']}"
    )
    arguments = json.dumps({"grpc.so_reuseport": 1})
    server = _with(workload.server, {"FL_LISTEN": listen, "FL_GRPC_OPTIONS": arguments})
    clients = tuple(
        _with(
            client,
            {"FL_SERVER_FILE": str(ADDRESS_FILE)},
            Mount(path=ADDRESS_FILE.parent, files={ADDRESS_FILE.name: client.application.env["FL_SERVER"]}),
        )
        for client in workload.clients
    )
    return dataclasses.replace(workload, server=server, clients=clients)


def _with(pod: PodPlan, environment: Mapping[str, str], *mounts: Mount, to_sidecars: bool = False) -> PodPlan:
    containers = tuple(
        one
        if one.sidecar != to_sidecars
        else dataclasses.replace(one, env={**one.env, **environment}, mounts=(*one.mounts, *mounts))
        for one in pod.containers
    )
    return dataclasses.replace(pod, containers=containers)
