"""What a level is to have in force on a cluster, and the proof that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ztprobe.errors import ZtprobeError
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.changes import Changes
from ztprobe.kubernetes.policy_objects import cluster_documents
from ztprobe.pods.model import Pod
from ztprobe.progress import Progress
from ztprobe.runtime.attempts import PodNetworks
from ztprobe.runtime.cluster import proof
from ztprobe.runtime.cluster.experiment import IMAGE
from ztprobe.runtime.cluster.hardening import prove_hardening
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.run_certificates import RunCertificates
from ztprobe.runtime.cluster.source import RunSource
from ztprobe.runtime.interface import Enforcement, NotProven, Proof, WorkloadOptions
from ztprobe.runtime.local.certificates import spiffe_id
from ztprobe.runtime.local.placement import loopback_port
from ztprobe.runtime.local.presented_certificates import presented
from ztprobe.runtime.local.workload import Workload
from ztprobe.runtime.tls_attempts import TlsWay, saw_identity, tls_attempts

__all__ = ("LevelProof", "expected")

_HARDENED = 3  # the level with Pod Security, and with accounts that have next to no rights


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


class LevelProof:
    """Of one run.

    :param namespace: of the run.
    :param source: where its logs are found.
    :param networks: of its pods.
    """

    def __init__(
        self,
        options: WorkloadOptions,
        workload: Workload,
        place: ClusterPlace,
        namespace: str,
        certificates: RunCertificates,
        source: RunSource,
        networks: PodNetworks,
    ) -> None:
        self._networks = networks
        self._options, self._workload, self._place = options, workload, place
        self._namespace, self._certificates, self._source = namespace, certificates, source

    @property
    def _service_name(self) -> str:
        service = self._workload.service
        return service.domain_name.replace(f".{service.namespace}.svc.", f".{self._namespace}.svc.")

    def prove(
        self,
        wanted: Enforcement,
        server: Pod,
        clients: Sequence[Pod],
        resolvers: Sequence[str],
        changes: Changes,
    ) -> Enforcement:
        """Try everything of the level.

        :param wanted: what is expected.
        :param resolvers: of the first client's pod.
        :raises NotProven: something of it is not in force.
        """
        policy = self._options.network_policy
        ways = proof.ways(server, clients, self._workload.service.port, policy=policy)
        hardening: list[Proof] = []
        if self._options.level == _HARDENED:
            accounts = (pod.service_account for pod in self._workload.pods)
            hardening = prove_hardening(changes, self._namespace, accounts, self._place.image or IMAGE)
        found = dataclasses.replace(
            wanted,
            network_policy=tuple(
                proof.prove_ways(ways, self._service_name, resolvers, self._networks, policy=policy)
            ),
            mtls=tuple(self._mutual_tls(server, clients[0]) if self._options.mutual_tls else ()),
            hardening=tuple(hardening),
        )
        if found.failed:
            raise NotProven(found)
        return found

    def _mutual_tls(self, server: Pod, client: Pod) -> list[Proof]:
        theirs, ours = self._workload.server, self._workload.clients[0]
        certificates, account = self._certificates, ours.service_account
        way = TlsWay(
            client=client,
            server=server,
            port=self._workload.service.port,
            application_port=loopback_port(theirs) or 0,
            service_name=self._service_name,
            server_identity=spiffe_id(self._namespace, theirs.service_account),
            own=certificates.of(ours.secret),
            foreign={
                "another account's": certificates.of(theirs.secret),
                "another authority's": certificates.foreign(self._namespace, account),
            },
            networks=self._networks,
        )
        attempts = tls_attempts(way)
        with ThreadPoolExecutor(max_workers=len(attempts)) as pool:
            seen = list(pool.map(lambda attempt: attempt.run(), attempts))
        proofs = [attempt.judged(said) for attempt, said in zip(attempts, seen, strict=True)]
        proxy = next(one.name for one in theirs.containers if one.sidecar)
        verified = saw_identity(
            server.name,
            client.name,
            spiffe_id(self._namespace, account),
            lambda: self._source.text(server, proxy),
        )
        return [*proofs, verified]

    def facts(self) -> dict[str, Any]:
        """Of mutual TLS, for run.json."""
        if not self._options.mutual_tls:
            return {}
        secrets = {pod.name: self._certificates.of(pod.secret) for pod in self._workload.pods}
        return {"tls_session_resumption": "off", "certificates": presented(secrets)}
