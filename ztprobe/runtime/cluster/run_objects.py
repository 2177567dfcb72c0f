"""A run's objects on its cluster: applied in order, written down for who comes after us, and removed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from ztprobe.errors import ZtprobeError
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.changes import Changes, changing
from ztprobe.process.interrupts import shielded
from ztprobe.progress import Progress
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.rewriting import RUN_LABEL
from ztprobe.runtime.cluster.run_pods import RunPods
from ztprobe.runtime.local.journal import Journal
from ztprobe.runtime.local.kustomize import Document

__all__ = ("RunObjects",)

_GRACE_S, _GONE_S, _POLL_S = 5, 60.0, 0.2


class RunObjects:
    """See the module.

    :param documents: all of the run, in the order in which they are applied.
    :param namespace: the one that they are in.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        place: ClusterPlace,
        run_id: str,
        namespace: str,
        progress: Progress,
    ) -> None:
        self._documents, self._place, self._progress = documents, place, progress
        self._run_id, self._namespace = run_id, namespace
        self._open = contextlib.ExitStack()
        self._changes: Changes | None = None
        self._journal: Journal | None = None
        self._is_applied = False

    def begin(self, api: Api) -> None:
        """Write down what is about to be made, so that a run whose owner was killed is named.

        :raises PreflightError: the cluster does not answer.
        """
        with shielded():
            self._journal = Journal(self._run_id)
            self._changes = self._open.enter_context(changing(api))
            self._journal.elsewhere(
                f"may still be on its cluster, in namespace {self._namespace}:"
                f" {self._place.undeploy(self._run_id)} removes it"
            )

    @property
    def changes(self) -> Changes:
        """For what is tried with others of the kind."""
        if self._changes is None:
            raise RuntimeError("begin() comes first")
        return self._changes

    def apply(self, *, policies: bool) -> None:
        """Apply the NetworkPolicies, or everything else.

        :raises PreflightError: the API refuses, or does not answer.
        """
        for document in self._documents:
            if (document["kind"] == "NetworkPolicy") == policies:
                self.changes.apply(document)
                self._is_applied = True

    def remove(self, pods: RunPods | None) -> None:
        """Remove whatever is there of it, and wait for its pods' end; idempotent.

        :param pods: the run's; None: it did not come so far.
        """
        with shielded():
            if self._changes is not None and self._is_applied:
                try:
                    self._remove(self._changes, pods)
                except ZtprobeError as error:
                    self._progress.note(
                        f"the run is not removed: {error}; {self._place.undeploy(self._run_id)} does it"
                    )
            self._changes = None
            self._open.close()
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    def _remove(self, changes: Changes, pods: RunPods | None) -> None:
        selector = f"{RUN_LABEL}={self._run_id}"
        changes.end_pods(selector, self._namespace, _GRACE_S)
        until_s = time.monotonic() + _GONE_S
        # What comes next on this node is to meet nothing of this run.
        while left := pods.read() if pods is not None else {}:
            if time.monotonic() > until_s:
                self._progress.note(f"still ending after {_GONE_S:.0f} s: {', '.join(sorted(left))}")
                break
            time.sleep(_POLL_S)
        changes.remove(selector, self._place.namespace)
