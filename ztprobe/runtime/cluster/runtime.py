"""A cluster as a runtime: a run's pods are applied, held at their gates, watched from their node, removed.

The manifests are `deploy`'s, as one run with its own namespace. Pods stand behind gates
(`ztprobe.runtime.cluster.gate`) until probes and profile are in force; then policies are applied and sidecars
come up, the server's gate is opened, and the clients' once the level is proven. All pods are on the node on
which this runs, or the agents of their nodes act for it there (`ztprobe.runtime.cluster.run_nodes`).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import WorkloadError
from ztprobe.kubernetes.pod_source import Cluster
from ztprobe.pods.model import Pod
from ztprobe.process.interrupts import shielded
from ztprobe.progress import Progress
from ztprobe.rundir import temporary
from ztprobe.runtime.cluster import gate, refusals
from ztprobe.runtime.cluster.experiment import experiment_documents
from ztprobe.runtime.cluster.gate_keeper import GateKeeper
from ztprobe.runtime.cluster.level_proof import LevelProof, expected
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.run_certificates import RunCertificates
from ztprobe.runtime.cluster.run_nodes import AllNetworks, OneNode, RunNodes
from ztprobe.runtime.cluster.run_objects import RunObjects
from ztprobe.runtime.cluster.run_pods import RunPods
from ztprobe.runtime.cluster.run_state import RunState
from ztprobe.runtime.cluster.source import RunSource, logs_of
from ztprobe.runtime.cluster.traced import traced_pods
from ztprobe.runtime.interface import Enforcement, LevelInForce, WorkloadOptions
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.later_level import overlay_of
from ztprobe.runtime.local.placement import loopback_port
from ztprobe.runtime.local.workload import Workload, plan

__all__ = ("ClusterRuntime",)

_LISTENS_S, _POLL_S = 120.0, 0.1  # a cold image's first import of its libraries takes a while


class ClusterRuntime:
    """`ztprobe.runtime.interface.Runtime` on a cluster.

    :param run_id: unique; its label, and the end of its namespace's name.
    :param log_dir: where the containers' output is kept.
    :param offloads: leave segmentation offloads of the pods' interfaces as they are.
    :param nodes: that the pods may be on; None: this one alone.
    """

    def __init__(
        self,
        options: WorkloadOptions,
        place: ClusterPlace,
        run_id: str,
        log_dir: Path,
        progress: Progress,
        *,
        offloads: bool,
        manifests_dir: Path = paths.MANIFESTS_DIR,
        nodes: RunNodes | None = None,
    ) -> None:
        """Read the manifests; asks no cluster yet.

        :raises UsageError: something is asked for that is not to be had there.
        """
        refusals.refuse_options(options)
        self._options, self._place, self._run_id = options, place, run_id
        self._log_dir, self._progress, self._offloads = log_dir.absolute(), progress, offloads
        self._workload: Workload = plan(render(overlay_of(manifests_dir, options)), options)
        self._namespace = place.namespace or f"fl-{run_id}"
        documents = experiment_documents(
            run_id, options, namespace=place.namespace, image=place.image, manifests_dir=manifests_dir
        )
        traced = traced_pods(documents, place.node)
        self._objects = RunObjects(traced, place, run_id, self._namespace, progress)
        self._certificates = RunCertificates(documents)
        self._nodes: RunNodes = nodes or OneNode(lambda: self._cluster)
        self._is_here = nodes is None
        self._source = RunSource(lambda: self._cluster, self._nodes, self._told, self._log_dir)
        self._level = LevelProof(
            options,
            self._workload,
            place,
            self._namespace,
            self._certificates,
            self._source,
            AllNetworks(self._nodes),
        )
        # The gate that holds the application: behind the sidecars, if there are any.
        self._last_gate = gate.INNER_GATE if options.mutual_tls else gate.GATE
        self._open = contextlib.ExitStack()
        self._pods: dict[str, Pod] = {}
        self._run_pods: RunPods | None = None
        self._gates = GateKeeper(self._nodes, self._source, progress)
        self._state = RunState(self._workload, self._namespace, self._told, self._source)
        self._sysctls: dict[str, str | None] = {}
        self._cgroups = ""

    @property
    def pods(self) -> tuple[Pod, ...]:
        """The FL pods, server first."""
        return tuple(self._pods.values())

    @property
    def server(self) -> Pod:
        """The FL server's pod."""
        return self._pods[self._workload.server.name]

    @property
    def clients(self) -> tuple[Pod, ...]:
        """The FL clients' pods."""
        return tuple(self._pods[pod.name] for pod in self._workload.clients)

    @property
    def edges(self) -> tuple[Pod, ...]:
        """There are none."""
        return ()

    @property
    def applications(self) -> dict[str, str]:
        """See `ztprobe.runtime.interface.Runtime`."""
        return {pod.name: pod.application.name for pod in self._workload.pods}

    @property
    def source(self) -> RunSource:
        """Where the pods' processes and logs are found."""
        return self._source

    def loopback_port(self, pod: str) -> int | None:
        """See `ztprobe.runtime.interface.Runtime`."""
        return next(loopback_port(one) for one in self._workload.pods if one.name == pod)

    def create(self) -> None:
        """Apply everything but policies, and wait until each pod stands at its gate.

        :raises PreflightError: the API refuses or does not answer, or a pod cannot be seen from here.
        :raises WorkloadError: something keeps a pod from its gate.
        :raises UsageError: pods are on other nodes.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        api = self._api = self._place.api()
        refusals.refuse_old(api, [self._options.level])
        self._cluster = Cluster(self._place.node, api)
        told = self._run_pods = RunPods(api, self._namespace, self._run_id, self._progress)
        self._certificates.write(self._open.enter_context(temporary.scratch()))
        self._objects.begin(api)
        self._objects.apply(policies=False)
        names = [pod.name for pod in self._workload.pods]
        told.await_gates(names, functools.partial(self._nodes.look_at, count=len(names)))
        self._enter(names)

    def _enter(self, names: list[str]) -> None:
        """Find the pods' networks on their nodes."""
        objects = self._told().objects
        found = {name: objects[name] for name in names}
        self._pods = self._nodes.enter(found, self._workload.server.name)
        self._source.know(self._pods.values())
        if not self._options.mutual_tls:  # else sidecars come next
            self._source.at_gates(self.applications)
        # Now, for kubelet takes a pod's network away as soon as its containers have ended.
        there = self._nodes.access(self.server)
        self._sysctls, self._cgroups = there.sysctls(self.server), there.cgroup_version()
        if not self._is_here or not logs_of(self.server).is_dir():
            self._ask_for_logs()
        if not self._offloads:
            for pod in self._pods.values():
                self._nodes.access(pod).one_by_one(pod)

    def _ask_for_logs(self) -> None:
        """:raises PreflightError: the API does not give logs either."""
        server = self.server
        for _ in self._api.log(server.namespace, server.name, gate.GATE, None, False):
            break  # it has nothing to say, and whether it may be asked is known now
        if self._is_here:
            self._progress.note(f"{logs_of(server)} is not there: the pods' logs are read through the API")
        self._source.read_logs_through(self._api)

    def secure(self) -> None:
        """Apply the level's policies, then let the sidecars come up and wait for them.

        :raises PreflightError: the API refuses the policies.
        :raises WorkloadError: a sidecar does not become ready.
        """
        self._objects.apply(policies=True)
        if not self._options.mutual_tls:
            return
        self._gates.open(self.pods)
        self._told().await_gates(list(self._pods), gate=gate.INNER_GATE)
        waiting = list(self.pods)
        for _ in self._until("sidecars are not ready"):
            waiting = [pod for pod in waiting if not self._nodes.access(pod).sidecar_ready(pod)]
            if not waiting:
                break
        self._source.at_gates(self.applications)

    def start_server(self) -> None:
        """Open the server's gate, and return once it listens.

        :raises WorkloadError: it ended, or does not listen in time.
        """
        application = self._workload.server.application
        port = int(application.env["FL_LISTEN"].rpartition(":")[2])
        self._gates.open([self.server], self._last_gate)
        for _ in self._until(f"{self.server.name} does not listen on port {port}"):
            pids = self._source.pids(self.server, application.name)
            if self._nodes.access(self.server).listens(pids, port):
                return

    def expected(self) -> Enforcement:
        """See `ztprobe.runtime.interface.Runtime`."""
        return expected(self._options, self._api, self._progress)

    def prove(self) -> Enforcement:
        """Show that the level's controls are in force. :raises NotProven: one is not."""
        first = self.clients[0]
        at_gate = self._source.pids(first, self._last_gate)
        resolvers = self._nodes.access(first).resolvers(at_gate)
        return self._level.prove(self.expected(), self.server, self.clients, resolvers, self._objects.changes)

    def start_clients(self) -> None:
        """Open every client's gate."""
        self._gates.open(self.clients, self._last_gate)

    def switch_level(self, started: Callable[[], None]) -> LevelInForce:
        """Not to be had here; refused beforehand."""
        raise RuntimeError("no later level was asked for")

    def check(self) -> None:
        """:raises WorkloadError: a container exited with an error, or a pod is gone or going.
        :raises PreflightError: the API has not answered for minutes.
        """
        self._state.check()

    def exits(self) -> Mapping[str, int]:
        """See `ztprobe.runtime.interface.Runtime`."""
        return self._state.exits()

    def finished(self) -> bool:
        """True once server and clients have all exited with status 0."""
        return self._state.finished()

    def last_words(self, pod: str, container: str) -> str:
        """The last lines that a container wrote, on one line, and where the rest is."""
        return self._state.last_words(pod, container)

    def facts(self) -> dict[str, Any]:
        """What shaped the run besides profile and level, for run.json; call it while pods exist."""
        return {
            "congestion_control": self._sysctls.get("net.ipv4.tcp_congestion_control"),
            "sysctls": dict(self._sysctls),
            "offloads": self._offloads,
            "cgroups": self._cgroups,
            "memory_limits_bytes": self._workload.memory_limits_bytes,
            "round_deadline_s": self._workload.round_deadline_s,
            "namespace": self._namespace,
            "node": self.server.node,
            "gate_held_s": dict(self._gates.held_s),
            **self._level.facts(),
        }

    def down(self) -> None:
        """Remove the run from the cluster, whatever is there of it; idempotent."""
        with shielded():
            self._source.close()
            self._objects.remove(self._run_pods)
            self._open.close()
            self._pods.clear()

    def _until(self, problem: str) -> Iterator[None]:
        deadline = time.monotonic() + _LISTENS_S
        while time.monotonic() < deadline:
            self.check()
            yield
            time.sleep(_POLL_S)
        raise WorkloadError(f"{problem} after {_LISTENS_S:.0f} s (logs in {self._log_dir})")

    def _told(self) -> RunPods:
        if self._run_pods is None:
            raise RuntimeError("create() comes first")
        return self._run_pods
