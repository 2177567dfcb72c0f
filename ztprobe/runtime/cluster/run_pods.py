"""A run's pods as the API last told of them; asked again behind the scenes while rounds go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping

from ztprobe.errors import PreflightError, WorkloadError, ZtprobeError
from ztprobe.kubernetes.api import Api, Object
from ztprobe.kubernetes.repeated import NotedAnswers, Repeated
from ztprobe.printable import printable
from ztprobe.progress import Progress
from ztprobe.runtime.cluster import pod_states
from ztprobe.runtime.cluster.gate import GATE
from ztprobe.runtime.cluster.rewriting import RUN_LABEL

__all__ = ("RunPods",)

_POLL_S = 0.5
_LONGEST_AWAY_S = 300.0  # rounds go on without the API; how they ended only it can tell
_GATES_S = 600.0  # an image of 300 MB over a slow line
_HINDERED_S = 15.0  # what may yet pass: a node that is being added, a second try of an image
_EVENTS_S = 10.0  # longer than a pod takes to come up when nothing is wrong
_LONGEST = 300


class RunPods:
    """See the module.

    :param progress: is told what is waited for.
    """

    def __init__(self, api: Api, namespace: str, run: str, progress: Progress) -> None:
        self._api, self._namespace, self._label = api, namespace, f"{RUN_LABEL}={run}"
        self._progress = progress
        self._asked = NotedAnswers(self.read, "the run goes on, and it is asked again")
        self._again = Repeated(self._asked, every_s=_POLL_S)
        self._answered_s = time.monotonic()
        self.objects: dict[str, Object] = {}  # by name

    def read(self) -> dict[str, Object]:
        """Ask now. :raises PreflightError: the API refuses or does not answer."""
        pods = self._api.objects("pods", self._namespace, self._label)
        self.objects = {str(pod["metadata"]["name"]): pod for pod in pods}
        self._answered_s = time.monotonic()
        return self.objects

    def look(self) -> None:
        """Ask again, if it is time to; nobody waits for the answer.

        :raises PreflightError: the API has not answered for minutes.
        """
        self._again.look()
        for note in self._asked.fresh_notes():
            self._progress.note(note)
        if (away_s := time.monotonic() - self._answered_s) > _LONGEST_AWAY_S:
            raise PreflightError(
                f"the Kubernetes API has not answered for {away_s:.0f} s: {self._asked.problem}"
            )

    def await_gates(
        self,
        names: Iterable[str],
        check: Callable[[Mapping[str, Object]], None] = lambda _: None,
        *,
        gate: str = GATE,
    ) -> None:
        """Wait until each of these pods stands at a gate; says what they wait for meanwhile.

        :param check: looks at all pods that there are, and raises where it is no use to wait.
        :raises WorkloadError: something keeps one from it.
        :raises PreflightError: the API refuses or does not answer.
        """
        names = list(names)
        begun_s, hindered_s, said = time.monotonic(), 0.0, ""
        asked_s, warning = begun_s, ""
        at = "there" if gate == GATE else "behind their sidecars"
        while True:
            pods = self.read()
            check(pods)
            there = [name for name in names if name in pods and pod_states.is_at_gate(pods[name], gate)]
            if len(there) == len(names):
                return
            found = [one for pod in pods.values() if (one := pod_states.hindrance(pod)) is not None]
            found.sort(key=lambda one: not one.is_final)
            now_s = time.monotonic()
            hindered_s = (hindered_s or now_s) if found else 0.0
            if found and (found[0].is_final or now_s - hindered_s > _HINDERED_S):
                raise WorkloadError(found[0].words)
            missing = next(name for name in names if name not in there)
            if now_s - begun_s > _GATES_S:
                why = self._warning(missing) or "no event says why"
                raise WorkloadError(f"{self._namespace}/{missing} is not {at} after {_GATES_S:.0f} s: {why}")
            words = f"{len(there)} of {len(names)} pods are {at}"
            if not found and now_s - asked_s > _EVENTS_S:
                asked_s, warning = now_s, self._warning(missing)
            words += f"; {found[0].words}" if found else f", {missing} is next{warning and ': '}{warning}"
            if words != said and now_s - begun_s > 2 * _POLL_S:
                self._progress.note(words)
                said = words
            time.sleep(_POLL_S)

    def _warning(self, name: str) -> str:
        """What the cluster's events say of a pod that does not come up; empty: nothing."""
        warnings = []
        with contextlib.suppress(ZtprobeError):
            for event in self._api.objects("events", self._namespace):
                about = event.get("involvedObject") or {}
                if event.get("type") == "Warning" and about.get("name") == name:
                    warnings.append(f"{event.get('reason')}: {event.get('message')}")
        return printable(" ".join(warnings[-1].split()), _LONGEST) if warnings else ""
