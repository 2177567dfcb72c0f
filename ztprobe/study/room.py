"""What a run's pods ask of a node, and what a node has left for pods. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ztprobe.runtime.local.quantities import quantity_of

__all__ = ("Room", "asked_by", "left_on", "quantity", "shortage")

_Object = Mapping[str, Any]
_OVER = ("Succeeded", "Failed")


@dataclass(frozen=True, kw_only=True)
class Room:
    """CPUs, memory and pods."""

    cpus: Decimal = Decimal(0)
    memory_bytes: Decimal = Decimal(0)
    pods: int = 0

    def __add__(self, other: Room) -> Room:
        return Room(
            cpus=self.cpus + other.cpus,
            memory_bytes=self.memory_bytes + other.memory_bytes,
            pods=self.pods + other.pods,
        )

    def __sub__(self, other: Room) -> Room:
        return Room(
            cpus=self.cpus - other.cpus,
            memory_bytes=self.memory_bytes - other.memory_bytes,
            pods=self.pods - other.pods,
        )


def quantity(text: object) -> Decimal:
    """A quantity as Kubernetes writes it: ``100m``, ``2``, ``384Mi``, ``1e3``; what is none counts as 0."""
    return Decimal(repr(quantity_of(text) or 0.0))


def asked_by(pod: _Object) -> Room:
    """What the scheduler keeps free for a pod: all its containers', or an init container's that asks more."""
    spec = pod["spec"]
    together, before = Room(pods=1), []
    for one in spec.get("initContainers") or ():
        if one.get("restartPolicy") == "Always":  # a sidecar, which goes on
            together += _requests(one)
        else:
            before.append(together + _requests(one))
    together = functools.reduce(Room.__add__, map(_requests, spec.get("containers") or ()), together)
    every = [together, *before]
    return Room(
        cpus=max(one.cpus for one in every), memory_bytes=max(one.memory_bytes for one in every), pods=1
    )


def left_on(node: _Object, pods: Iterable[_Object]) -> Room:
    """What a node has for pods, without what those that are on it ask for.

    :param pods: of the whole cluster.
    """
    allocatable = node["status"].get("allocatable") or {}
    whole = Room(
        cpus=quantity(allocatable.get("cpu")),
        memory_bytes=quantity(allocatable.get("memory")),
        pods=int(quantity(allocatable.get("pods"))),
    )
    name = node["metadata"]["name"]
    for pod in pods:
        if pod["spec"].get("nodeName") == name and pod["status"].get("phase") not in _OVER:
            whole -= asked_by(pod)
    return whole


def shortage(asked: Room, left: Room) -> str | None:
    """What there is too little of, with both figures; None: it fits."""
    if asked.cpus > left.cpus:
        return f"{float(asked.cpus):g} CPUs, and {float(max(left.cpus, Decimal(0))):g} are left"
    if asked.memory_bytes > left.memory_bytes:
        mib = [float(max(one.memory_bytes, Decimal(0))) / 2**20 for one in (asked, left)]
        return f"{mib[0]:.0f} MiB of memory, and {mib[1]:.0f} are left"
    if asked.pods > left.pods:
        return f"room for {asked.pods} pods, and there is room for {max(left.pods, 0)}"
    return None


def _requests(container: _Object) -> Room:
    requests = (container.get("resources") or {}).get("requests") or {}
    return Room(cpus=quantity(requests.get("cpu")), memory_bytes=quantity(requests.get("memory")))
