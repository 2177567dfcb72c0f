"""How a run's containers stand, by what the API last told: who has ended, and whether that is an error."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ztprobe.errors import WorkloadError
from ztprobe.rundir.logs import last_words
from ztprobe.runtime.cluster import pod_states
from ztprobe.runtime.cluster.run_pods import RunPods
from ztprobe.runtime.cluster.source import RunSource
from ztprobe.runtime.local.workload import Workload

__all__ = ("RunState",)

_END_S = 10.0  # how long the containers of a pod that is removed may take until nobody waits for them
_LOOK_S = 0.2


class _Going(NamedTuple):
    """A pod that goes or is gone."""

    words: str
    has_ended: bool


class RunState:
    """See the module.

    :param run_pods: what the API told.
    :param namespace: of the run.
    """

    def __init__(
        self, workload: Workload, namespace: str, run_pods: Callable[[], RunPods], source: RunSource
    ) -> None:
        self._workload, self._namespace = workload, namespace
        self._run_pods, self._source = run_pods, source

    def check(self) -> None:
        """:raises WorkloadError: a container exited with an error, or a pod is gone or going.
        :raises PreflightError: the API has not answered for minutes.
        """
        self._look()
        self._check_removed()
        objects = self._run_pods().objects
        applications = {f"{one.name}/{one.application.name}" for one in self._workload.pods}
        for who, status in pod_states.exits(objects.values()).items():
            pod, _, container = who.partition("/")
            if status == 0 and who in applications:  # a sidecar is not to end before it
                continue
            killed = f"was killed by {signal.Signals(-status).name}" if status < 0 else ""
            how = killed or f"exited with status {status}"
            if pod_states.short_of_memory(objects[pod], container):
                how += " (out of memory: its limit is in the manifests)"
            raise WorkloadError(f"{who} {how}: {self.last_words(pod, container)}")
        for one in self._workload.pods:
            if (why := pod_states.hindrance(objects[one.name])) is not None and why.is_final:
                raise WorkloadError(why.words)

    def _check_removed(self) -> None:
        """:raises WorkloadError: somebody removes a pod; said once it is known how its containers end."""
        words, until_s = "", time.monotonic() + _END_S
        while going := self._going():
            words = words or going[0].words
            if time.monotonic() > until_s or all(one.has_ended for one in going):
                break
            time.sleep(_LOOK_S)
            self._look()
        if words:
            raise WorkloadError(f"{words}: nothing goes on")

    def _going(self) -> list[_Going]:
        """Pods that somebody removes, or has."""
        found = []
        for one in self._workload.pods:
            pod, words = self._run_pods().objects.get(one.name), f"{self._namespace}/{one.name} is removed"
            if pod is None:
                found.append(_Going(f"{words} by somebody", has_ended=True))
            elif pod_states.is_going(pod):
                by = pod_states.removed_by(pod)
                how = f" from node {pod_states.node_of(pod)} ({by})" if by else " by somebody"
                found.append(_Going(words + how, has_ended=pod_states.has_ended(pod)))
        return found

    def exits(self) -> Mapping[str, int]:
        """See `ztprobe.runtime.interface.Runtime`."""
        return pod_states.exits(self._run_pods().objects.values())

    def finished(self) -> bool:
        """True once server and clients have all exited with status 0."""
        self._look()
        exits = self.exits()
        is_over = all(exits.get(f"{one.name}/{one.application.name}") == 0 for one in self._workload.pods)
        if is_over:
            self._source.complete()  # whoever is told that it is over reads their last words
        return is_over

    def last_words(self, pod: str, container: str) -> str:
        """The last lines that a container wrote, on one line, and where the rest is."""
        self._source.complete()
        return last_words(self._source.log(self._source.named(pod), container))

    def _look(self) -> None:
        self._run_pods().look()
        self._source.look()
