"""The interface that a runtime offers to the job and to the agent.

A runtime owns pods: it creates them from the manifests, starts and stops their
containers, enforces the manifests' security and undoes all of it. It knows
nothing of probes or of network profiles; those belong to the agent, which acts
on the `Pod` values listed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ("Enforcement", "Pod", "Proof", "Runtime", "WorkloadOptions")


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """What the command line asks of the workload, the same on every runtime."""

    rounds: int
    clients: int
    seed: int
    distribution: str  # iid | noniid
    dataset: str  # digits | mnist | fashion-mnist
    data_dir: Path | None
    reconnect: bool
    level: int  # security level 0..3
    # the workload's own options (``--fl-...``), as JSON in FL_OPTIONS
    fl: Mapping[str, Any] = field(default_factory=dict)
    # more environment for the workload's containers (ztprobe validate puts known costs there)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A running pod, as far as the node needs to know it."""

    name: str
    namespace: str
    labels: dict[str, str]
    address: str  # IPv4
    netns: Path
    netns_inode: int
    interface: str  # inside the pod: eth0
    interface_index: int  # inside the pod; unique among the pods of a node
    host_interface: str  # the other end of the veth, in the node's namespace
    # between application and sidecar on the pod's own loopback (server: the application's,
    # client: the sidecar's); None without a sidecar
    loopback_port: int | None = None
    containers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One check that a control was in force before round 1."""

    name: str  # e.g. "allowed: fl-client-0 -> fl-server:50051/tcp"
    expected: str
    observed: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Enforcement:
    """What was expected of the security level and what was proven (goes to run.json as it is)."""

    network_policy_expected: bool
    mtls_expected: bool
    network_policy: tuple[Proof, ...] = ()
    mtls: tuple[Proof, ...] = ()
    # anything worth recording: rule counts, certificate identities, resumption setting
    details: dict[str, Any] = field(default_factory=dict)


class Runtime(Protocol):
    """Lifecycle, in this order.

    create -> [agent attaches, profile applied and measured] -> secure -> start_server ->
    prove -> start_clients -> wait (check, finished) -> down
    """

    @property
    def pods(self) -> tuple[Pod, ...]:
        """The FL pods and the DNS pod."""
        ...

    @property
    def node_netns(self) -> Path:
        """The namespace that forwards between pods (policy drops happen there)."""
        ...

    def create(self) -> None:
        """Bring up node, pods (namespaces, links, addresses, DNS); start no workload yet."""
        ...

    def secure(self) -> None:
        """Put policy and sidecars in force (nothing under sec0)."""
        ...

    def start_server(self) -> None:
        """Start the FL server and return once it listens."""
        ...

    def prove(self) -> Enforcement:
        """Show that the controls are in force. :raises EnforcementError: one is not."""
        ...

    def start_clients(self) -> None:
        """Start every client's application."""
        ...

    def processes(self) -> dict[int, tuple[str, str]]:
        """pid -> (pod name, container name) of everything running in FL pods now."""
        ...

    def check(self) -> None:
        """:raises WorkloadError: a container exited with an error (names it, with its last lines)."""
        ...

    def finished(self) -> bool:
        """True once server and clients have all exited with status 0."""
        ...

    def log_path(self, pod: str, container: str) -> Path:
        """Standard output of a container, growing while it runs (stderr is beside it, ``.err``)."""
        ...

    def facts(self) -> dict[str, Any]:
        """For run.json: congestion control, buffers, slow start after idle, offloads, resumption, limits."""
        ...

    def down(self) -> None:
        """Undo everything, whatever state we are in; idempotent."""
        ...
