"""The policies of a level that a run is to have later: read and checked before anything is made. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ztprobe.errors import EnforcementError, UsageError
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local import network, placement
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.level import check_level
from ztprobe.runtime.local.workload import Workload, plan

__all__ = ("overlay_of", "policies_of")

Policies = tuple[Mapping[str, Any], ...]


def overlay_of(manifests_dir: Path, options: WorkloadOptions) -> Path:
    """Where a level's manifests stand. :raises UsageError: there are none with edge aggregators."""
    edges = bool(options.fl.get("edges"))
    overlay = manifests_dir / "overlays" / f"sec{options.level}{'-edges' if edges else ''}"
    if not overlay.is_dir() and edges:
        raise UsageError(f"--fl-edges: {overlay} is missing, which sec{options.level} needs with edges")
    return overlay


def policies_of(
    manifests_dir: Path,
    options: WorkloadOptions,
    workload: Workload,
    placed: Mapping[str, network.PodAddress],
) -> Policies | None:
    """The NetworkPolicies of the options' ``later_level``; None: the run keeps its level.

    :param workload: of the level that the run begins with.
    :raises EnforcementError: the levels differ in more than policies, or the manifests are not the later one.
    """
    if options.later_level is None:
        return None
    later = dataclasses.replace(options, level=options.later_level, later_level=None)
    planned = plan(render(overlay_of(manifests_dir, later)), later)
    check_level(later, planned, placement.rules(planned, placed))
    differing = [mine.name for mine, other in zip(workload.pods, planned.pods, strict=True) if mine != other]
    if differing:
        raise EnforcementError(
            f"sec{options.level} cannot become sec{later.level} while rounds go on: their manifests differ in"
            f" the pods {', '.join(differing[:3])}, and what runs is not changed"
        )
    return planned.policies
