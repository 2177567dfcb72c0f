"""Who serves whom, looked at while a run goes on, until all of it has been seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztprobe.agent import endpoints
from ztprobe.agent.interface import Agent
from ztprobe.experiment.stall_watch import workload_pods
from ztprobe.runtime.interface import Runtime

__all__ = ("seen_topology", "unseen_topology")


def unseen_topology(runtime: Runtime) -> dict[str, Any]:
    """What is known before anybody has looked."""
    return endpoints.unknown(runtime.server.name, workload_pods(runtime))


def seen_topology(meta: Mapping[str, Any], agent: Agent, runtime: Runtime) -> dict[str, Any]:
    """What has been seen by now: often before round 1, then round by round until all connect to somebody.

    :param meta: run.json's content so far, with what was seen before as ``topology``.
    """
    before: dict[str, Any] | None = meta.get("topology")
    expected = {pod.name for pod in (*runtime.edges, *runtime.clients)}
    if before is not None and expected <= {pod for served in before["serves"].values() for pod in served}:
        # Sidecars that came meanwhile are seen once clients connect through them.
        with_sidecars = (meta.get("level_switch") or {}).get("sidecars_ns") is not None
        if not with_sidecars or {*expected, runtime.server.name} <= before["behind_sidecar"].keys():
            return before
    seen = agent.topology()
    # Whose log the rounds are from is known; the rest was seen.
    return {
        "rounds_of": runtime.server.name,
        **(seen if before is None else endpoints.merged(before, seen)),
    }
