"""Who opens the gates of a run's pods, and knows how long each has held."""

from __future__ import annotations

from collections.abc import Sequence

from ztprobe.errors import WorkloadError
from ztprobe.pods.model import Pod
from ztprobe.progress import Progress
from ztprobe.runtime.cluster import gate
from ztprobe.runtime.cluster.run_nodes import RunNodes
from ztprobe.runtime.cluster.source import RunSource

__all__ = ("GateKeeper",)


class GateKeeper:
    """See the module.

    :param nodes: that the pods are on.
    :param source: where the gates' processes are found.
    :param progress: is told who was let go.
    """

    def __init__(self, nodes: RunNodes, source: RunSource, progress: Progress) -> None:
        self._nodes, self._source, self._progress = nodes, source, progress
        self.held_s: dict[str, float] = {}  # by pod

    def open(self, pods: Sequence[Pod], name: str = gate.GATE) -> None:
        """Let these pods go on.

        :param name: of the gate; what comes after the last one is the application.
        :raises WorkloadError: one stands there no more.
        """
        for pod in pods:
            held_s = self._nodes.access(pod).open_gate(self._source.pids(pod, name), name)
            if held_s is None:
                raise WorkloadError(
                    f"{pod}: its gate ({name}) is there no more: has somebody removed the pod?"
                )
            self.held_s[pod.name] = round(self.held_s.get(pod.name, 0.0) + held_s, 3)
        longest_s = max(self.held_s[pod.name] for pod in pods)
        who = pods[0].name if len(pods) == 1 else f"{len(pods)} pods"
        self._progress.note(f"{who} let go, after {longest_s:.1f} s at the gate")
