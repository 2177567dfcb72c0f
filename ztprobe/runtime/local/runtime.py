"""The local runtime: pods are network namespaces and processes of this machine.

It runs the same manifests as a cluster. What it does in place of a cluster's parts:
`kustomize` renders them, `workload` reads them, `placement` gives out addresses, `network`
is the CNI plugin, `dns` is CoreDNS, `policy` and `firewall` are what enforces NetworkPolicies,
`certificates` is the issuer, `zygote` with `container` is the container runtime, `cgroups`
holds the memory limits. `proof` shows that it all works, and `journal` takes it away again.

Not a security boundary: containers share the machine's files, users and process ids.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ztprobe import paths, policy
from ztprobe.errors import PreflightError, WorkloadError
from ztprobe.kernelnet.sockets import tcp_sockets
from ztprobe.pods.live_objects import publish_objects
from ztprobe.pods.local import LocalPods
from ztprobe.pods.model import Pod
from ztprobe.process.interrupts import shielded
from ztprobe.runtime.interface import Enforcement, LevelInForce, NotProven, WorkloadOptions
from ztprobe.runtime.local import (
    certificates,
    cgroups,
    dns,
    firewall,
    later_level,
    network,
    placement,
    proof,
    sidecar,
    transport,
)
from ztprobe.runtime.local.containers import Containers, create_cgroups, preload_for
from ztprobe.runtime.local.journal import Journal
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.level import check_level
from ztprobe.runtime.local.machine import check_machine
from ztprobe.runtime.local.names import NameService
from ztprobe.runtime.local.presented_certificates import presented
from ztprobe.runtime.local.scenes import scenes_of
from ztprobe.runtime.local.workload import PodPlan, Workload, plan

__all__ = ("LocalRuntime",)

_READY_S, _POLL_S = 30.0, 0.005
_DRAIN_S = 1.0  # from a client's look at an address to its connection, under any profile of ours


class LocalRuntime:
    """`ztprobe.runtime.interface.Runtime` on this machine.

    Call everything from one thread that lives as long as the run: processes started here die with it.
    """

    def __init__(
        self,
        options: WorkloadOptions,
        run_id: str,
        log_dir: Path,
        offloads: bool,
        congestion_control: str = "cubic",
        manifests_dir: Path = paths.MANIFESTS_DIR,
        cpu_limits: bool = False,
        as_admitted: bool = False,
    ) -> None:
        """Read the manifests; touches nothing yet.

        :param run_id: unique among live runs; part of every name on the machine.
        :param log_dir: where containers' output goes; created if need be.
        :param offloads: leave segmentation offloads of the pods' interfaces on. Off, what
            crosses the node are packets of wire size, one by one.
        :param cpu_limits: apply the manifests' CPU limits (throttling distorts rounds).
        :param as_admitted: take policies that an API server takes, and that cannot be meant.
        :raises UsageError: the manifests ask for something that is not supported.
        :raises EnforcementError: they lack what the level is to have.
        """
        self._options = options
        self._run_id = run_id
        # Absolute: the containers' working directory is another.
        self._log_dir = log_dir.absolute()
        self._offloads = offloads
        self._congestion_control = congestion_control
        self._cpu_limits = cpu_limits
        workload = plan(render(later_level.overlay_of(manifests_dir, options)), options)
        self._later = later_level.read_later_level(manifests_dir, options, workload)
        self._workload: Workload = later_level.prepared(workload, self._later)
        self._plans = {pod.name: pod for pod in self._workload.pods}
        self._mtls = options.mutual_tls
        self._placed = placement.place(self._workload)
        self._rules = placement.rules(self._workload, self._placed, check_port_names=not as_admitted)
        check_level(options, self._workload, self._rules)
        self._node = network.NodeNetwork(run_id, offloads)
        self._tree = cgroups.Tree(cgroups.detect(), f"ztp-{run_id}")
        self._pods: dict[str, Pod] = {}
        self._journal: Journal | None = None
        self._containers: Containers | None = None
        self._source = LocalPods(run_id)
        self._changes: list[dict[str, Any]] = []  # of the objects that policies rest on
        self.authority: certificates.Issuer = certificates.Authority(run_id)

    @property
    def pods(self) -> tuple[Pod, ...]:
        """The FL pods, server first, and the DNS pod."""
        return tuple(pod for name, pod in self._pods.items() if name != placement.OUTSIDER)

    @property
    def server(self) -> Pod:
        """The FL server's pod."""
        return self._pods[self._workload.server.name]

    @property
    def outsider(self) -> Pod:
        """The pod that no policy means to let in."""
        return self._pods[placement.OUTSIDER]

    @property
    def policies(self) -> tuple[Mapping[str, Any], ...]:
        """The NetworkPolicies in force, as documents."""
        return self._workload.policies

    @property
    def clients(self) -> tuple[Pod, ...]:
        """The FL clients' pods."""
        return tuple(self._pods[pod.name] for pod in self._workload.clients)

    @property
    def edges(self) -> tuple[Pod, ...]:
        """Pods of edge aggregators."""
        return tuple(self._pods[pod.name] for pod in self._workload.edges)

    @property
    def applications(self) -> dict[str, str]:
        """See `ztprobe.runtime.interface.Runtime`."""
        return {pod.name: pod.application.name for pod in self._workload.pods}

    @property
    def source(self) -> LocalPods:
        """Where the pods' processes and logs are found."""
        return self._source

    def loopback_port(self, pod: str) -> int | None:
        """See `ztprobe.runtime.interface.Runtime`."""
        return self._placed[pod].loopback_port

    @property
    def node_netns(self) -> Path:
        """The namespace with the bridge, the policies and the delay line."""
        return self._node.netns

    @property
    def rules(self) -> policy.Ruleset:
        """The compiled NetworkPolicies (nothing isolated where there are none)."""
        return self._rules

    def create(self) -> None:
        """Bring up node, pods and DNS, and begin to load the workload; nothing of it runs yet.

        :raises PreflightError: not root, or this machine lacks something.
        :raises UsageError: the run's name is taken.
        """
        to_be = self._workload if self._later is None else self._later.workload
        check_machine(
            to_be,
            mutual_tls=any(c.sidecar for p in to_be.pods for c in p.containers),
            congestion_control=self._congestion_control,
        )
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PreflightError(f"{self._log_dir} cannot be written: {error.strerror}") from error
        # Interrupted within a step (a helper process makes a namespace) something could appear afterwards.
        with shielded():
            journal = self._journal = Journal(self._run_id)
            journal.cgroups(self._tree.tops)
            journal.namespaces(self._node.name(pod) for pod in ("node", *self._placed))
            preload = preload_for(self._workload, self._options)
            self._containers = Containers(journal, self._tree, self._log_dir, preload)
            create_cgroups(journal, self._tree, to_be.pods, cpu_limits=self._cpu_limits)
            self._node.create()
            for name, where in self._placed.items():
                self._pods[name] = self._node.add(where)
                options = self._plans[name].resolver_options if name in self._plans else ()
                self._containers.prepare(self._pods[name], self._placed[dns.POD].address, options)
            self._node.introduce([(pod, self._placed[name]) for name, pod in self._pods.items()])
            transport.choose(journal, [pod.netns for pod in self._pods.values()], self._congestion_control)
            self.names = NameService(self._pods[dns.POD], self._containers)
            self.names.start(self.node_netns, self._workload, self._placed)
            journal.pods(self.pods, self._log_dir)
            publish_objects(journal.directory, self._workload.namespace_objects)

    def secure(self) -> None:
        """Put the level's policies in force, then start the sidecars and wait for them.

        :raises EnforcementError: the node refuses the rules.
        :raises WorkloadError: a sidecar does not become ready.
        """
        # With nothing in force yet, too: a policy that comes later must know the connections that there are.
        if self._workload.policies or self._later is not None:
            firewall.load(self.node_netns, policy.to_nft(self._rules))
        if self._workload.policies:
            publish_objects(paths.STATE_DIR / self._run_id, self._workload.policy_objects)
        if self._mtls:
            certificates.issue_all(self.authority, self._workload, self._up().secrets_directory)
            self._start_sidecars(self._workload.pods)

    def _start_sidecars(self, plans: Sequence[PodPlan]) -> None:
        self._up().launch([(self._pods[p.name], c) for p in plans for c in p.containers if c.sidecar])
        # As the kubelet does: without a startup probe a sidecar is not waited for.
        probed = [p.name for p in plans if any(c.sidecar and c.startup_probe for c in p.containers)]
        waiting = [self._pods[name] for name in probed]
        for _ in self._until("sidecars are not ready"):
            waiting = [pod for pod in waiting if not sidecar.backends_ready(pod.netns)]
            if not waiting:
                return

    def enforce(self, policies: Sequence[Mapping[str, Any]]) -> None:
        """Put these NetworkPolicies in force in place of the present ones, as a change in a cluster would.

        :raises UsageError: one is not what Kubernetes takes.
        :raises EnforcementError: the node refuses the rules.
        """
        self._workload = dataclasses.replace(self._workload, policies=tuple(policies))
        self._rules = placement.rules(self._workload, self._placed, check_port_names=False)
        firewall.load(self.node_netns, policy.to_nft(self._rules), replace=True)
        change = {"time_monotonic_ns": time.monotonic_ns(), "objects": list(self._workload.policy_objects)}
        self._changes.append(change)

    def switch_level(self, started: Callable[[], None]) -> LevelInForce:
        """See `ztprobe.runtime.interface.Runtime`."""
        if (later := self._later) is None:
            raise RuntimeError("no later level was asked for")
        sidecars_ns = policies_ns = None
        self._workload = later.workload
        self._options, self._placed, self._mtls = later.options, dict(later.placed), later.options.mutual_tls
        if later.adds_sidecars:
            certificates.issue_all(self.authority, self._workload, self._up().secrets_directory)
            self._start_sidecars(self._workload.clients)
            started()
            for client in self._workload.clients:
                address = client.application.env["FL_SERVER"]
                self._up().renew(self._pods[client.name], later_level.ADDRESS_FILE, address)
            # Who has just read the old one gets there first; who reads this one tries until it is answered.
            time.sleep(_DRAIN_S)
            self._start_sidecars([self._workload.server])
            started()
            sidecars_ns = time.monotonic_ns()
        scene = self._scenes()[0]
        found = self.expected()
        if later.adds_sidecars:
            found = dataclasses.replace(found, mtls=tuple(proof.prove_sidecar(scene)))
        if later.changes_policies:
            self.enforce(later.workload.policies)
            policies_ns = time.monotonic_ns()
            publish_objects(paths.STATE_DIR / self._run_id, self._workload.policy_objects)
            found = dataclasses.replace(found, network_policy=(proof.prove_policies(scene),))
        return LevelInForce(sidecars_ns=sidecars_ns, policies_ns=policies_ns, enforcement=found)

    def machine_setting(self, file: Path, value: str) -> AbstractContextManager[None]:
        """A setting of the whole machine that the run's journal takes back, whatever ends the run."""
        if self._journal is None:
            raise RuntimeError("create() comes first")
        return self._journal.setting(file, value)

    def start_server(self) -> None:
        """Start the FL server, and the edge aggregators if there are any; return once they listen.

        :raises UsageError: the workload refuses its settings, e.g. the data directory.
        :raises WorkloadError: one ended, or does not listen in time.
        """
        for pod in (self._workload.server, *self._workload.edges):
            self._start_listening(pod)

    def _start_listening(self, pod: PodPlan) -> None:
        self._up().launch([(self._pods[pod.name], pod.application)])
        port = int(pod.application.env["FL_LISTEN"].rpartition(":")[2])
        pid = self._up().pid(pod.name, pod.application.name)
        for _ in self._until(f"{pod.name} does not listen on port {port}"):
            if any(found.listens and found.local_port == port for found in tcp_sockets(pid)):
                return

    def expected(self) -> Enforcement:
        """See `ztprobe.runtime.interface.Runtime`."""
        return Enforcement(
            network_policy_expected=self._options.network_policy,
            mtls_expected=self._mtls,
            details={"objects": list(self._workload.policy_objects)},
        )

    def prove(self) -> Enforcement:
        """Show that the level's controls are in force. :raises NotProven: one is not."""
        found = proof.prove(self._scenes())
        found.details.update(self.expected().details)
        if self._workload.policies:
            found.details["counters"] = firewall.counters(self.node_netns)
            found.details["policies"] = [p["metadata"]["name"] for p in self._workload.policies]
        if self._mtls:
            found.details["tls_session_resumption"] = "off"
            found.details["certificate_lifetime_s"] = int(certificates.LIFETIME.total_seconds())
        found.details["not_applied"] = list(self._workload.not_applied)
        if found.failed:
            raise NotProven(found)
        return found

    def _scenes(self) -> list[proof.ProofScene]:
        up = self._up()
        return scenes_of(
            self._workload,
            self._options,
            node=self.node_netns,
            pods=self._pods,
            secrets=up.secrets_directory,
            loopback_ports={name: where.loopback_port for name, where in self._placed.items()},
            proxy_log=lambda pod: up.log_path(pod, "proxy"),
        )

    def start_clients(self) -> None:
        """Start every client's application."""
        self._up().launch([(self._pods[p.name], p.application) for p in self._workload.clients])

    def check(self) -> None:
        """:raises WorkloadError: a container ended that should not have, or with an error."""
        for pod, container, status in self._up().ended([pod.name for pod in self._workload.pods]):
            application = pod in self._plans and self._plans[pod].application.name == container
            if status == 0 and application:
                continue
            killed = f"was killed by {signal.Signals(-status).name}" if status < 0 else ""
            how = killed or f"exited with status {status}"
            if self._tree.oom_kills(pod, container):
                how += " (out of memory: its limit is in the manifests)"
            raise WorkloadError(f"{pod}/{container} {how}: {self._up().last_words(pod, container)}")

    def exits(self) -> dict[str, int]:
        """See `ztprobe.runtime.interface.Runtime`."""
        return self._up().exits()

    def finished(self) -> bool:
        """True once server and clients have all exited with status 0."""
        exits = self._up().exits()
        return all(exits.get(f"{p.name}/{p.application.name}") == 0 for p in self._workload.pods)

    def last_words(self, pod: str, container: str) -> str:
        """The last lines that a container wrote, on one line, and where the rest is."""
        return self._up().last_words(pod, container)

    def facts(self) -> dict[str, Any]:
        """What shaped the run besides profile and level, for run.json; call it while pods exist."""
        server = self._pods[self._workload.server.name]
        return {
            "congestion_control": self._congestion_control,
            "sysctls": transport.recorded(server.netns),
            "mtu_bytes": network.MTU_BYTES,
            "offloads": self._offloads,
            "ipv6": False,
            "neighbours": "static",
            "tls_session_resumption": "off" if self._mtls else None,
            "cgroups": self._tree.hierarchies.version,
            "limits_unavailable": sorted(self._tree.unavailable),
            "memory_limits_bytes": self._workload.memory_limits_bytes,
            "cpu_limits": "applied" if self._cpu_limits else "off: throttling would distort the rounds",
            "object_changes": list(self._changes),
            "certificates": presented(
                {p.name: self._up().secrets_directory / p.secret for p in self._workload.pods if self._mtls}
            ),
            "round_deadline_s": self._workload.round_deadline_s,
            "workload_warm_up_s": self._up().warm_up_s,
            "manifests_not_applied": list(self._workload.not_applied),
        }

    def down(self) -> None:
        """Undo everything, from any state; idempotent. A Ctrl-C meanwhile waits until it is done."""
        with shielded():
            if self._containers is not None:
                self._containers.close()
            if self._journal is not None:
                self._journal.close()
            self._pods.clear()

    def _until(self, problem: str) -> Iterator[None]:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            self.check()
            yield
            time.sleep(_POLL_S)
        raise WorkloadError(f"{problem} after {_READY_S:.0f} s (logs in {self._log_dir})")

    def _up(self) -> Containers:
        if self._containers is None:
            raise RuntimeError("create() comes first")
        return self._containers
