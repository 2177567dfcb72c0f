"""The interface that a runtime offers to the job.

A runtime brings a deployment up and down: it creates pods from the manifests, starts and
stops their containers, enforces the manifests' security and undoes all of it. Finding what runs
is the business of the `ztprobe.pods.source.PodSource` that it hands out. It knows nothing of probes
or of network profiles; those belong to the agent, which acts on the same `Pod` values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ztprobe.errors import EnforcementError
from ztprobe.pods.model import Pod
from ztprobe.pods.source import PodSource

__all__ = ("Enforcement", "NotProven", "Proof", "Runtime", "WorkloadOptions")


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
    later_level: int | None = None  # with other policies, to be put in force while rounds go on

    @property
    def network_policy(self) -> bool:
        """Whether the level has NetworkPolicies in force, whatever the manifests say."""
        return self.level in (1, 3)

    @property
    def mutual_tls(self) -> bool:
        """Whether the level has sidecars that speak mutual TLS, whatever the manifests say."""
        return self.level in (2, 3)


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
    hardening: tuple[Proof, ...] = ()  # what sec3 adds on a cluster: Pod Security, and the accounts' rights
    # anything worth recording: rule counts, certificate identities, resumption setting
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """All that was tried."""
        return (*self.network_policy, *self.mtls, *self.hardening)

    @property
    def failed(self) -> list[Proof]:
        """What is not in force."""
        return [proof for proof in self.proofs if not proof.passed]


@dataclass(frozen=True, kw_only=True)
class LevelInForce:
    """A level that came while rounds went on: since when (CLOCK_MONOTONIC; None: it has no such change)."""

    sidecars_ns: int | None  # the server's took its port over
    policies_ns: int | None
    enforcement: Enforcement


class NotProven(EnforcementError):
    """A control is not in force; `enforcement` holds every check, those that passed too."""

    def __init__(self, enforcement: Enforcement) -> None:
        words = (f"{p.name}: expected {p.expected}, observed {p.observed}" for p in enforcement.failed)
        super().__init__(f"not in force: {'; '.join(words)}")
        self.enforcement = enforcement


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
    def server(self) -> Pod:
        """The FL server's pod."""
        ...

    @property
    def clients(self) -> tuple[Pod, ...]:
        """The FL clients' pods."""
        ...

    @property
    def edges(self) -> tuple[Pod, ...]:
        """Pods of edge aggregators, between server and clients; mostly there are none."""
        ...

    @property
    def applications(self) -> dict[str, str]:
        """FL pod's name -> the container that runs the application (and logs its events)."""
        ...

    @property
    def source(self) -> PodSource:
        """Where the pods' processes and logs are found."""
        ...

    def loopback_port(self, pod: str) -> int | None:
        """Between application and sidecar on the pod's loopback (server: the application's, client: the
        sidecar's); None without a sidecar."""
        ...

    def create(self) -> None:
        """Bring up node, pods (namespaces, links, addresses, DNS); start no workload yet."""
        ...

    def expected(self) -> Enforcement:
        """What is to be in force, with the objects that policies are made of, before anything is proven."""
        ...

    def secure(self) -> None:
        """Put policy and sidecars in force (nothing under sec0)."""
        ...

    def start_server(self) -> None:
        """Start the FL server and the edge aggregators, if any; return once they listen."""
        ...

    def prove(self) -> Enforcement:
        """Show that the controls are in force. :raises NotProven: one is not."""
        ...

    def start_clients(self) -> None:
        """Start every client's application."""
        ...

    def switch_level(self, started: Callable[[], None]) -> LevelInForce:
        """Put the options' ``later_level`` in force while rounds go on, and show that it is.

        What shows it comes from a pod that no round waits for.

        :param started: called when there are new processes.
        """
        ...

    def check(self) -> None:
        """:raises WorkloadError: a container exited with an error (names it, with its last lines)."""
        ...

    def exits(self) -> Mapping[str, int]:
        """POD/CONTAINER -> exit status (negative: the signal) of all that have ended."""
        ...

    def finished(self) -> bool:
        """True once server and clients have all exited with status 0."""
        ...

    def last_words(self, pod: str, container: str) -> str:
        """The last lines that a container wrote, on one line."""
        ...

    def facts(self) -> dict[str, Any]:
        """For run.json: congestion control, buffers, slow start after idle, offloads, resumption, limits."""
        ...

    def down(self) -> None:
        """Undo everything, whatever state we are in; idempotent."""
        ...
