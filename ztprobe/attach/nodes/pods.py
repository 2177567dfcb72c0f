"""What the API tells of a deployment on any of its nodes, asked again behind the scenes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ztprobe.attach.nodes.request import NodesRequest
from ztprobe.errors import UsageError, ZtprobeError
from ztprobe.kubernetes.answers import Object
from ztprobe.kubernetes.pod_facts import is_over
from ztprobe.kubernetes.pod_source import running_pods
from ztprobe.kubernetes.policy_objects import cluster_documents
from ztprobe.kubernetes.repeated import NotedAnswers, Repeated
from ztprobe.pods.model import Pod
from ztprobe.pods.selection import nothing_matches

__all__ = ("DeployedPods",)

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


class DeployedPods:
    """A server's pod and its clients', as the API last told.

    :raises UsageError: the server's labels do not mean one pod that runs, or clients' mean none.
    :raises PreflightError: the API refuses or does not answer.
    """

    def __init__(self, request: NodesRequest) -> None:
        self._request = request
        self._listed: list[Object] = []
        self._everybody: dict[str, Pod] = {}  # of the namespace, by address
        self._asked = NotedAnswers(self._read, "the pods known so far are watched, and it is asked again")
        self._peers: set[str] = set()  # names
        self._read()
        self.server = self._one_server()
        self.clients: dict[str, Pod] = {}
        self._choose()
        if request.clients and not self.clients:
            raise UsageError(f"{request.clients[0].option}: {self._nothing()}")
        self.objects: list[dict[str, Any]] = []  # that policies rest on, as they were at first
        self._read_objects()
        self._again = Repeated(self._asked)

    @property
    def all(self) -> list[Pod]:
        """Server first."""
        return [self.server, *self.clients.values()]

    @property
    def server_container(self) -> str:
        """The one that its rounds are logged by."""
        found = next(one for one in self._listed if one["metadata"]["name"] == self.server.name)
        annotations = found["metadata"].get("annotations") or {}
        containers = [str(one.get("name", "")) for one in found["spec"].get("containers") or ()]
        return str(annotations.get(_DEFAULT_CONTAINER) or next(iter(containers), ""))

    @property
    def server_is_over(self) -> bool:
        """Whether its containers have ended for good, or it is gone."""
        found = [one for one in self._listed if one["metadata"]["name"] == self.server.name]
        return not found or is_over(found[0]) or "deletionTimestamp" in found[0]["metadata"]

    def look(self) -> None:
        """Ask again, if it is time to; nobody waits for the answer."""
        self._again.look()
        self._choose()

    def take_peers(self, addresses: Iterable[str]) -> None:
        """These are connected to the server: clients, where none were named."""
        if not self._request.clients:
            found = {self._everybody[one].name for one in addresses if one in self._everybody}
            self._peers |= found - {self.server.name}
            self._choose()

    def fresh_notes(self) -> Collection[str]:
        """For people, since the last time."""
        return self._asked.fresh_notes()

    def _read(self) -> None:
        listed = self._request.api.objects("pods", self._request.namespace)
        self._listed = listed
        self._everybody = {pod.address: pod for pod in running_pods(listed)}

    def _one_server(self) -> Pod:
        target = self._request.server
        found = [pod for pod in self._everybody.values() if target.selector.matches(pod.labels)]
        if not found:
            raise UsageError(f"{target.option}: {self._nothing()}")
        if len(found) > 1:
            names = ", ".join(sorted(pod.name for pod in found)[:4])
            raise UsageError(f"{target.option}: means {len(found)} pods ({names}), expected the server's one")
        return found[0]

    def _nothing(self) -> str:
        there = [
            (pod.namespace, pod.name, pod.labels)
            for pod in sorted(self._everybody.values(), key=lambda one: one.name)
        ]
        return nothing_matches(self._request.namespace, there)

    def _choose(self) -> None:
        """Those that are clients now; who was one stays one as long as it runs."""
        selectors = [target.selector for target in self._request.clients]
        self.clients = {
            pod.name: pod
            for pod in sorted(self._everybody.values(), key=lambda one: one.name)
            if pod.name != self.server.name
            and (pod.name in self._peers or any(one.matches(pod.labels) for one in selectors))
        }

    def _read_objects(self) -> None:
        try:
            self.objects = cluster_documents(self._request.api)
        except ZtprobeError as error:
            self._asked.note(f"the policies in force are not known: {error}")
