"""A cluster's pods, here or everywhere, and the policies in force, kept up to date behind the scenes."""

from __future__ import annotations

import time
from collections.abc import Collection

from ztprobe.errors import ZtprobeError
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.pod_source import Cluster, pods_everywhere
from ztprobe.kubernetes.policy_objects import cluster_objects
from ztprobe.kubernetes.repeated import Repeated
from ztprobe.pods.model import Pod
from ztprobe.policy.model import Objects

__all__ = ("WatchedCluster",)


class WatchedCluster:
    """As of the last `look`, and at first as of now.

    :param namespace: of the pods; policies are read of all namespaces, for they may select others.
    :param everywhere: the pods of all nodes, which are no more than names and addresses here.
    :raises PreflightError: nothing says which cluster, or the API refuses to list pods.
    """

    def __init__(
        self, api: Api, namespace: str, *, node: str | None = None, everywhere: bool = False
    ) -> None:
        self._api, self._namespace = api, namespace
        self._cluster = None if everywhere else Cluster(node, api)
        self._notes: list[str] = []
        self._problem = ""
        self.pods: tuple[Pod, ...] = self._running()
        # Since when (CLOCK_MONOTONIC nanoseconds; 0: since before anybody looked), the oldest first.
        self.in_force: list[tuple[int, Objects | None]] = [(0, None)]
        self._read_objects()
        self._again = Repeated(self._ask_again)

    def look(self) -> None:
        """Ask again, if it is time to. Nobody waits for the answer."""
        self._again.look()

    def fresh_notes(self) -> Collection[str]:
        """For people, since the last time."""
        notes, self._notes = self._notes, []
        return notes

    def _ask_again(self) -> None:
        try:
            if self._cluster is not None:
                self._cluster.look_again()
            self.pods = self._running()
            self._read_objects()
        except ZtprobeError as error:
            self._say(f"{error}; the pods known so far are watched, and it is asked again")

    def _running(self) -> tuple[Pod, ...]:
        if self._cluster is None:
            return tuple(pods_everywhere(self._api, self._namespace))
        return tuple(self._cluster.neighbours(self._namespace))

    def _read_objects(self) -> None:
        try:
            objects = cluster_objects(self._api)
        except ZtprobeError as error:
            self._say(f"policies are not known: {error}")
            return
        self._problem = ""
        if objects != self.in_force[-1][1]:
            # What nobody has seen change was so before.
            since_ns = time.monotonic_ns() if self.in_force[-1][1] is not None else 0
            self.in_force = [*(one for one in self.in_force if one[1] is not None), (since_ns, objects)]

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._notes.append(problem)
        self._problem = problem
