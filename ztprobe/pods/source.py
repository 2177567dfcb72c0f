"""Where pods are found: the one interface to live local runs and to a cluster's node.

A source finds pods that run; who brought them up is none of its business
(`ztprobe.runtime.interface.Deployment` does that, and hands out a source of what it made).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ztprobe.pods.model import Pod
from ztprobe.pods.selectors import Selector

__all__ = ("Found", "PodSource", "Processes")

Processes = dict[int, tuple[str, str]]  # pid -> (pod's name, container's name)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a selector means."""

    here: tuple[Pod, ...]
    elsewhere: tuple[Pod, ...] = ()  # on other nodes, and cluster addresses of Services in front of them
    notes: tuple[str, ...] = ()  # for people: what was left out


class PodSource(Protocol):
    """Finds pods, their processes and their logs."""

    def pods_here(self, selector: Selector, namespace: str) -> Found:
        """The running pods that a selector means, on this node.

        :raises ZtprobeError: there are none, or they cannot be reached; says what to do.
        """
        ...

    def peers(self, selector: Selector, namespace: str) -> Found:
        """Whom traffic goes to: the pods that a selector means, on whichever node.

        :raises ZtprobeError: as `pods_here`.
        """
        ...

    def neighbours(self, namespace: str) -> list[Pod]:
        """Every pod of a namespace that runs on this node and can be entered."""
        ...

    def processes(self, pods: Iterable[Pod]) -> Processes:
        """Everything that runs in these pods now; a pod that is gone has none."""
        ...

    def log(self, pod: Pod, container: str) -> Path:
        """The file that holds a container's standard output and grows with it."""
        ...
