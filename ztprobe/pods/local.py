"""Pods of the local runtime's live runs, read from their journals (``/run/ztprobe/RUN/journal.json``).

A run writes down its pods, where their containers' cgroups are (one directory for each, below
``POD/CONTAINER``) and where their output goes, so that other commands find all of it without the
process that made it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import UsageError
from ztprobe.pods.model import Pod, still_there
from ztprobe.pods.selection import choose
from ztprobe.pods.selectors import Selector
from ztprobe.pods.source import Found, Processes

__all__ = ("LocalPods", "local_pods", "log_name")


def log_name(pod: str, container: str) -> str:
    """The file that holds a container's standard output; standard error is beside it as ``.err``."""
    return f"{pod}.{container}.log"


def local_pods(state_dir: Path | None = None) -> list[Pod]:
    """The pods of all live runs of the local runtime, ordered by run and name."""
    found = []
    for journal in sorted((state_dir or paths.STATE_DIR).glob("*/journal.json")):
        try:
            listed = json.loads(journal.read_text()).get("pods", ())
            pods = [Pod.from_dict({**pod, "run": journal.parent.name}) for pod in listed]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # being made or being removed
        found += [pod for pod in pods if still_there(pod.netns, pod.netns_inode)]
    return sorted(found, key=lambda pod: (pod.run, pod.namespace, pod.name))


class LocalPods:
    """`ztprobe.pods.source.PodSource` of the runs that are going on on this machine.

    :param run: of this run alone.
    """

    def __init__(self, run: str | None = None, state_dir: Path | None = None) -> None:
        self._run = run
        self._state_dir = state_dir or paths.STATE_DIR
        self._journals: dict[str, dict[str, Any]] = {}

    def _pods(self) -> list[Pod]:
        found = local_pods(self._state_dir)
        chosen = [pod for pod in found if self._run in (None, pod.run)]
        if found and not chosen:
            there = ", ".join(sorted({pod.run for pod in found}))
            raise UsageError(f"--run {self._run}: no such run is going on; there is {there}")
        return chosen

    def pods_here(self, selector: Selector, namespace: str) -> Found:
        """See `PodSource`."""
        return Found(here=tuple(choose(self._pods(), selector, namespace)))

    def peers(self, selector: Selector, namespace: str) -> Found:
        """See `PodSource`."""
        return Found(here=tuple(choose(self._pods(), selector, namespace, option="--to")))

    def neighbours(self, namespace: str) -> list[Pod]:
        """See `PodSource`."""
        return [pod for pod in self._pods() if pod.namespace == namespace]

    def processes(self, pods: Iterable[Pod]) -> Processes:
        """See `PodSource`."""
        found: Processes = {}
        for pod in pods:
            for top in self._written(pod.run, "cgroups")[:1]:  # every hierarchy has the same members
                with contextlib.suppress(OSError):  # it has ended
                    for container in sorted(Path(top, pod.name).iterdir()):
                        if container.is_dir():
                            pids = (container / "cgroup.procs").read_text().split()
                            found |= {int(pid): (pod.name, container.name) for pid in pids}
        return found

    def log(self, pod: Pod, container: str) -> Path:
        """See `PodSource`. :raises FileNotFoundError: the run has ended."""
        (directory,) = self._written(pod.run, "logs") or ("",)
        if not directory:
            raise FileNotFoundError(f"run {pod.run} has no journal")
        return Path(directory, log_name(pod.name, container))

    def _written(self, run: str, entry: str) -> list[str]:
        if entry not in self._journals.get(run, {}):  # written once, when the pods are made
            try:
                self._journals[run] = json.loads((self._state_dir / run / "journal.json").read_text())
            except (OSError, ValueError):
                return []
        found = self._journals[run].get(entry, [])
        return list(found)
