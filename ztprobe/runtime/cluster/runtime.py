"""A cluster as a runtime: a run's pods are applied, held at their gates, watched from their node, removed.

The manifests are `deploy`'s, as one run with its own namespace. Pods stand behind gates
(`ztprobe.runtime.cluster.gate`) until probes and profile are in force; then policies are applied, the
server's gate is opened, and the clients' once the level is proven. All pods are on the node on which this
runs: nothing finds what happens on others yet.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import PreflightError, UsageError, WorkloadError, ZtprobeError
from ztprobe.kernelnet.sockets import tcp_sockets
from ztprobe.kubernetes.api import Object
from ztprobe.kubernetes.changes import Changes, changing
from ztprobe.kubernetes.pod_source import Cluster
from ztprobe.kubernetes.policy_objects import cluster_documents
from ztprobe.pods.model import Pod
from ztprobe.process.interrupts import shielded
from ztprobe.progress import Progress
from ztprobe.rundir.logs import last_words
from ztprobe.runtime.cluster import gate, pod_states, proof
from ztprobe.runtime.cluster.experiment import experiment_documents
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.rewriting import RUN_LABEL
from ztprobe.runtime.cluster.run_pods import RunPods
from ztprobe.runtime.cluster.source import RunSource, logs_of
from ztprobe.runtime.cluster.traced import traced_pods
from ztprobe.runtime.interface import Enforcement, LevelInForce, NotProven, WorkloadOptions
from ztprobe.runtime.local import cgroups, transport
from ztprobe.runtime.local.journal import Journal
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.later_level import overlay_of
from ztprobe.runtime.local.network import one_by_one
from ztprobe.runtime.local.workload import PodPlan, Workload, plan

__all__ = ("ClusterRuntime",)

_LISTENS_S, _POLL_S = 120.0, 0.1  # a cold image's first import of its libraries takes a while
_GRACE_S, _GONE_S = 5, 60.0
_FEW = 3


class ClusterRuntime:
    """`ztprobe.runtime.interface.Runtime` on a cluster.

    :param run_id: unique; its label, and the end of its namespace's name.
    :param log_dir: where the containers' output is kept.
    :param offloads: leave segmentation offloads of the pods' interfaces as they are.
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
    ) -> None:
        """Read the manifests; asks no cluster yet.

        :raises UsageError: something is asked for that is not to be had there.
        """
        _refuse(options)
        self._options, self._place, self._run_id = options, place, run_id
        self._log_dir, self._progress, self._offloads = log_dir.absolute(), progress, offloads
        self._workload: Workload = plan(render(overlay_of(manifests_dir, options)), options)
        self._namespace = place.namespace or f"fl-{run_id}"
        documents = experiment_documents(
            run_id, options, namespace=place.namespace, image=place.image, manifests_dir=manifests_dir
        )
        self._documents = traced_pods(documents, place.node)
        self._open = contextlib.ExitStack()
        self._changes: Changes | None = None
        self._journal: Journal | None = None
        self._pods: dict[str, Pod] = {}
        self._held_s: dict[str, float] = {}
        self._is_applied = False
        self._source = RunSource(lambda: self._cluster, lambda: self._run_pods, self._log_dir)

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
        return None

    def create(self) -> None:
        """Apply everything but policies, and wait until each pod stands at its gate.

        :raises PreflightError: the API refuses or does not answer, or a pod cannot be seen from here.
        :raises WorkloadError: something keeps a pod from its gate.
        :raises UsageError: pods are on other nodes.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        api = self._place.api()
        self._cluster = Cluster(self._place.node, api)
        self._run_pods = RunPods(api, self._namespace, self._run_id, self._progress)
        self._api = api
        with shielded():
            self._journal = Journal(self._run_id)
            self._changes = self._open.enter_context(changing(api))
            self._journal.elsewhere(
                f"may still be on its cluster, in namespace {self._namespace}:"
                f" {self._place.undeploy(self._run_id)} removes it"
            )
        self._apply(policies=False)
        names = [pod.name for pod in self._workload.pods]
        self._run_pods.await_gates(names, self._refuse_apart)
        self._enter(names)

    def _apply(self, *, policies: bool) -> None:
        for document in self._documents:
            if (document["kind"] == "NetworkPolicy") == policies:
                self._up().apply(document)
                self._is_applied = True

    def _enter(self, names: list[str]) -> None:
        """Find the pods' networks on this node."""
        self._cluster.look_again()
        objects = self._run_pods.objects
        found = {name: self._cluster.resolved(objects[name]) for name in names}
        here = {pod.node for pod in found.values() if pod is not None}
        away = {name: pod_states.node_of(objects[name]) for name, pod in found.items() if pod is None}
        _refuse_away(away, min(here, default=self._cluster.node), len(names))
        self._pods = {name: pod for name, pod in found.items() if pod is not None}
        self._source.at_gates(self.applications)
        if not logs_of(self.server).is_dir():
            raise PreflightError(
                f"the pods' logs are not to be seen: {logs_of(self.server)} is not there; run ztprobe on the"
                " node itself, or mount the node's /var/log/pods where it runs"
            )
        if not self._offloads:
            for pod in self._pods.values():
                one_by_one(pod.netns, pod.interface)

    def _refuse_apart(self, objects: Mapping[str, Object]) -> None:
        """As soon as it is known that pods are elsewhere. :raises UsageError: they are."""
        nodes = {name: where for name, pod in objects.items() if (where := pod_states.node_of(pod))}
        # A node's name that was guessed says nothing as long as all are on one: what is seen will.
        if self._cluster.is_named or len(set(nodes.values())) > 1:
            away = {name: where for name, where in nodes.items() if where != self._cluster.node}
            _refuse_away(away, self._cluster.node, len(self._workload.pods))

    def secure(self) -> None:
        """Apply the level's policies. :raises PreflightError: the API refuses them."""
        self._apply(policies=True)

    def start_server(self) -> None:
        """Open the server's gate, and return once it listens.

        :raises WorkloadError: it ended, or does not listen in time.
        """
        application = self._workload.server.application
        port = int(application.env["FL_LISTEN"].rpartition(":")[2])
        self._let_go([self._workload.server])
        for _ in self._until(f"{self.server.name} does not listen on port {port}"):
            running = self._source.processes([self.server]).items()
            pids = [pid for pid, (_, container) in running if container == application.name]
            if any(one.listens and one.local_port == port for pid in pids for one in tcp_sockets(pid)):
                return

    def _let_go(self, plans: list[PodPlan]) -> None:
        gates = self._gates()
        for one in plans:
            held_s = gate.open_gate(gates.get(one.name, ()))
            if held_s is None:
                raise WorkloadError(
                    f"{self._namespace}/{one.name}: its gate ({gate.GATE}) is there no more: has somebody"
                    " removed the pod?"
                )
            self._held_s[one.name] = round(held_s, 3)
        longest_s = max(self._held_s[one.name] for one in plans)
        who = plans[0].name if len(plans) == 1 else f"{len(plans)} clients"
        self._progress.note(f"{who} let go, after {longest_s:.1f} s at the gate")

    def _gates(self) -> dict[str, list[int]]:
        """Pod's name -> its gate's processes."""
        found: dict[str, list[int]] = {}
        for pid, (pod, container) in self._source.processes(self._pods.values()).items():
            if container == gate.GATE:
                found.setdefault(pod, []).append(pid)
        return found

    def expected(self) -> Enforcement:
        """See `ztprobe.runtime.interface.Runtime`."""
        details: dict[str, Any] = {}
        try:
            details["objects"] = cluster_documents(self._api)
        except ZtprobeError as error:
            self._progress.note(f"the policies in force are not known: {error}")
        return Enforcement(
            network_policy_expected=self._options.network_policy,
            mtls_expected=self._options.mutual_tls,
            details=details,
        )

    def prove(self) -> Enforcement:
        """Show that policies are enforced, or that none is in the way. :raises NotProven: it is not so."""
        policy = self._options.network_policy
        port = self._workload.service.port
        at_gate = self._gates().get(self.clients[0].name, ())
        proofs = proof.prove_ways(
            proof.ways(self.server, self.clients, port, policy=policy),
            self._workload.service.domain_name.replace(
                f".{self._workload.service.namespace}.svc.", f".{self._namespace}.svc."
            ),
            next(filter(None, map(proof.nameservers, at_gate)), []),
            policy=policy,
        )
        expected = self.expected()
        found = Enforcement(
            network_policy_expected=policy,
            mtls_expected=expected.mtls_expected,
            network_policy=tuple(proofs),
            details=expected.details,
        )
        if found.failed:
            raise NotProven(found)
        return found

    def start_clients(self) -> None:
        """Open every client's gate."""
        self._let_go(list(self._workload.clients))

    def switch_level(self, started: Callable[[], None]) -> LevelInForce:
        """Not to be had here; refused beforehand."""
        raise RuntimeError("no later level was asked for")

    def check(self) -> None:
        """:raises WorkloadError: a container exited with an error, or a pod is gone or going.
        :raises PreflightError: the API has not answered for minutes.
        """
        self._run_pods.look()
        self._source.look()
        objects = self._run_pods.objects
        for who, status in pod_states.exits(objects.values()).items():
            pod, _, container = who.partition("/")
            if status == 0:
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
        return pod_states.exits(self._run_pods.objects.values())

    def finished(self) -> bool:
        """True once server and clients have all exited with status 0."""
        self._run_pods.look()
        self._source.look()
        exits = self.exits()
        return all(exits.get(f"{one.name}/{one.application.name}") == 0 for one in self._workload.pods)

    def last_words(self, pod: str, container: str) -> str:
        """The last lines that a container wrote, on one line, and where the rest is."""
        return last_words(self._source.log(self._pods[pod], container))

    def facts(self) -> dict[str, Any]:
        """What shaped the run besides profile and level, for run.json; call it while pods exist."""
        sysctls = transport.recorded(self.server.netns)
        return {
            "congestion_control": sysctls.get("net.ipv4.tcp_congestion_control"),
            "sysctls": sysctls,
            "offloads": self._offloads,
            "cgroups": cgroups.detect().version,
            "memory_limits_bytes": self._workload.memory_limits_bytes,
            "round_deadline_s": self._workload.round_deadline_s,
            "namespace": self._namespace,
            "node": self.server.node,
            "gate_held_s": dict(self._held_s),
        }

    def down(self) -> None:
        """Remove the run from the cluster, whatever is there of it; idempotent."""
        with shielded():
            self._source.close()
            if self._changes is not None and self._is_applied:
                try:
                    self._remove(self._changes)
                except ZtprobeError as error:
                    self._progress.note(
                        f"the run is not removed: {error}; {self._place.undeploy(self._run_id)} does it"
                    )
            self._changes = None
            self._open.close()
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            self._pods.clear()

    def _remove(self, changes: Changes) -> None:
        selector = f"{RUN_LABEL}={self._run_id}"
        changes.end_pods(selector, self._namespace, _GRACE_S)
        until_s = time.monotonic() + _GONE_S
        # What comes next on this node is to meet nothing of this run.
        while left := self._run_pods.read():
            if time.monotonic() > until_s:
                self._progress.note(f"still ending after {_GONE_S:.0f} s: {', '.join(sorted(left))}")
                break
            time.sleep(2 * _POLL_S)
        changes.remove(selector, self._place.namespace)

    def _until(self, problem: str) -> Iterator[None]:
        deadline = time.monotonic() + _LISTENS_S
        while time.monotonic() < deadline:
            self.check()
            yield
            time.sleep(_POLL_S)
        raise WorkloadError(f"{problem} after {_LISTENS_S:.0f} s (logs in {self._log_dir})")

    def _up(self) -> Changes:
        if self._changes is None:
            raise RuntimeError("create() comes first")
        return self._changes


def _refuse_away(away: Mapping[str, str], node: str, count: int) -> None:
    if not away:
        return
    listed = ", ".join(f"{name} on {where}" for name, where in sorted(away.items())[:_FEW])
    more = f" and {len(away) - _FEW} more" if len(away) > _FEW else ""
    remedy = f"--node {node} keeps the whole run here" if len(away) < count else "run ztprobe there"
    raise UsageError(
        f"{listed}{more}, and this is node {node}: only pods of this node can be traced yet; {remedy}"
    )


def _refuse(options: WorkloadOptions) -> None:
    where = "--runtime kubernetes"
    if options.mutual_tls:
        raise UsageError(
            f"sec{options.level}: with {where} trace brings up sec0 and sec1, sidecars not yet; `ztprobe"
            " deploy experiment` puts them on a cluster, and trace --attach watches them there"
        )
    if options.later_level is not None:
        raise UsageError(f"--switch-level: is for this machine's own runtime, not for {where}")
    if options.fl.get("edges"):
        raise UsageError(f"--fl-edges: is for this machine's own runtime, not for {where}")
