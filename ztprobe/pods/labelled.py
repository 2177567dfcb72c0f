"""What a target that is labels means: whoever has the pods says which processes and addresses are theirs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ztprobe.errors import UsageError
from ztprobe.pods.local import LocalPods, local_pods
from ztprobe.pods.process_table import OneProcess
from ztprobe.pods.targets import Target

__all__ = ("Labelled", "LabelledPods", "LocalLabelledPods")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The pods of one target, as of now."""

    processes: Mapping[int, str]  # pid on this machine -> its pod's name
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # address -> name of a pod on another node


class LabelledPods(Protocol):
    """The pods of a local run, or of a cluster as one of its nodes sees it."""

    def look(self, target: Target, processes: Iterable[OneProcess]) -> Labelled:
        """What the target's labels mean now.

        :param processes: of this machine.
        :raises UsageError: they do not mean one deployment's pods.
        :raises PreflightError: nobody can be asked, and nobody could so far.
        """
        ...

    def why_nothing(self, target: Target) -> str:
        """For people: why these labels name nobody."""
        ...

    def pod_of(self, process: OneProcess) -> str:
        """The name of the pod that a process runs in; empty: of none, or of none that is known."""
        ...

    def pod_at(self, address: str) -> str:
        """The name of the pod that has an address, on whichever node; empty: nobody's that is known."""
        ...

    def in_force(self) -> list[tuple[int, list[dict[str, Any]]]]:
        """The objects that policies are made of and rest on, as Kubernetes writes them, the oldest first.

        Each with the time since when they are in force (CLOCK_MONOTONIC nanoseconds; 0: since before anybody
        looked). Empty: nobody has told.
        """
        ...

    def log_of(self, target: Target) -> Path | None:
        """The file that holds the output of the one pod that labels mean; None: there is none here."""
        ...

    def log_reader(self, target: Target) -> Callable[[int | None, bool], Iterator[bytes]] | None:
        """Asks for that output where there is no file (`ztprobe.kubernetes.pod_log`); None: nobody to ask."""
        ...

    def fresh_notes(self) -> Collection[str]:
        """For people, since the last time."""
        ...


class LocalLabelledPods:
    """Those of one run of the local runtime."""

    def __init__(self) -> None:
        self._run: str | None = None  # of the first target that meant any

    def look(self, target: Target, processes: Iterable[OneProcess]) -> Labelled:
        """See `LabelledPods`.

        :raises UsageError: they are of several runs, whose pods have the same names.
        """
        selector = target.selector
        pods = [pod for pod in local_pods() if selector.matches(pod.labels)]
        runs = sorted({pod.run for pod in pods})
        if self._run is None and len(runs) > 1:
            raise UsageError(
                f"{target.option}: matches pods of {len(runs)} runs ({', '.join(runs[:6])}); name "
                "one's by their namespaces (netns:), which `ip netns` shows"
            )
        self._run = self._run or next(iter(runs), None)
        mine = [pod for pod in pods if pod.run == self._run]
        return Labelled(processes={pid: pod for pid, (pod, _) in LocalPods().processes(mine).items()})

    def why_nothing(self, target: Target) -> str:
        """See `LabelledPods`."""
        names = ", ".join(sorted(pod.name for pod in local_pods())[:6])
        return f"matches no pod of the local runtime; running: {names or 'none'}"

    def pod_of(self, process: OneProcess) -> str:
        """See `LabelledPods`: a peer of the local runtime's pods is named by its role."""
        return ""

    def pod_at(self, address: str) -> str:
        """See `LabelledPods`: all of a local run is on this machine."""
        return ""

    def in_force(self) -> list[tuple[int, list[dict[str, Any]]]]:
        """See `LabelledPods`: a local run records them itself."""
        return []

    def log_of(self, target: Target) -> Path | None:
        """See `LabelledPods`: which of a pod's containers would tell of rounds is not known here."""
        return None

    def log_reader(self, target: Target) -> Callable[[int | None, bool], Iterator[bytes]] | None:
        """See `LabelledPods`."""
        return None

    def fresh_notes(self) -> Collection[str]:
        """See `LabelledPods`."""
        return ()
