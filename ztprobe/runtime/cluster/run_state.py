"""How a run's containers stand, by what the API last told: who has ended, and whether that is an error."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from ztprobe.errors import WorkloadError
from ztprobe.rundir.logs import last_words
from ztprobe.runtime.cluster import pod_states
from ztprobe.runtime.cluster.run_pods import RunPods
from ztprobe.runtime.cluster.source import RunSource
from ztprobe.runtime.local.workload import Workload

__all__ = ("RunState",)


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
            found = objects.get(one.name)
            if found is None or "deletionTimestamp" in found["metadata"]:
                raise WorkloadError(f"{self._namespace}/{one.name} is removed by somebody: nothing goes on")
            if (why := pod_states.hindrance(found)) is not None and why.is_final:
                raise WorkloadError(why.words)

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
