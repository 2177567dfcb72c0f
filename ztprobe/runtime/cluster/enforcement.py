"""What a level is to have in force on a cluster, and the proof that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ztprobe.errors import ZtprobeError
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.policy_objects import cluster_documents
from ztprobe.pods.model import Pod
from ztprobe.progress import Progress
from ztprobe.runtime.cluster import proof
from ztprobe.runtime.interface import Enforcement, Proof, WorkloadOptions
from ztprobe.runtime.local.workload import ServicePlan

__all__ = ("expected", "prove_policies", "service_name")


def expected(options: WorkloadOptions, api: Api, progress: Progress) -> Enforcement:
    """See `ztprobe.runtime.interface.Runtime`.

    :param progress: is told if the policies that are there cannot be read.
    """
    details: dict[str, Any] = {}
    try:
        details["objects"] = cluster_documents(api)
    except ZtprobeError as error:
        progress.note(f"the policies in force are not known: {error}")
    return Enforcement(
        network_policy_expected=options.network_policy,
        mtls_expected=options.mutual_tls,
        details=details,
    )


def service_name(service: ServicePlan, namespace: str) -> str:
    """The server's domain name in a run's namespace."""
    return service.domain_name.replace(f".{service.namespace}.svc.", f".{namespace}.svc.")


def prove_policies(
    server: Pod,
    clients: Sequence[Pod],
    port: int,
    name: str,
    at_gate: Sequence[int],
    *,
    policy: bool,
) -> tuple[Proof, ...]:
    """Try the ways that policies open and close, or that none may be in.

    :param name: of the server, in DNS.
    :param at_gate: processes of the first client's gate, which have its resolvers.
    """
    resolvers = next(filter(None, map(proof.nameservers, at_gate)), [])
    found = proof.ways(server, clients, port, policy=policy)
    return tuple(proof.prove_ways(found, name, resolvers, policy=policy))
