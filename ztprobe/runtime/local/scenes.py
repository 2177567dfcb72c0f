"""Between which pods controls are to be shown: clients and server; with edges, those two ways. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ztprobe.pods.model import Pod
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local import dns
from ztprobe.runtime.local.certificates import spiffe_id
from ztprobe.runtime.local.placement import OUTSIDER
from ztprobe.runtime.local.proof import ProofScene
from ztprobe.runtime.local.workload import PodPlan, Workload

__all__ = ("scenes_of",)


def scenes_of(
    workload: Workload,
    options: WorkloadOptions,
    *,
    node: Path,
    pods: Mapping[str, Pod],
    secrets: Path,
    loopback_ports: Mapping[str, int | None],
    proxy_log: Callable[[str], Path],
) -> list[ProofScene]:
    """The ways from those who connect to those who serve them.

    :param pods: the workload's, the DNS pod and the outsider.
    :param secrets: the directory with one for each Secret.
    :param proxy_log: of a pod's sidecar.
    """

    def scene(
        server: PodPlan, clients: Sequence[PodPlan], name: str, stranger: PodPlan | None = None
    ) -> ProofScene:
        client, foreign = clients[0], stranger or server
        return ProofScene(
            node=node,
            server=pods[server.name],
            clients=tuple(pods[p.name] for p in clients),
            dns=pods[dns.POD],
            outsider=pods[OUTSIDER],
            stranger=None if stranger is None else pods[stranger.name],
            service_name=name,
            port=workload.service.port,
            loopback_port=loopback_ports[server.name],
            policy=options.network_policy,
            certificates=(secrets / client.secret, secrets / foreign.secret) if options.mutual_tls else None,
            client_identity=spiffe_id(client.namespace, client.service_account),
            server_identity=spiffe_id(server.namespace, server.service_account),
            server_proxy_log=proxy_log(server.name),
        )

    if workload.edge_service is None:
        return [scene(workload.server, workload.clients, workload.service.domain_name)]
    edge = workload.edges[0]
    own = [name for name, pod in workload.edge_names.items() if pod == edge.name]
    return [
        scene(workload.server, workload.edges, workload.service.domain_name, workload.clients[0]),
        scene(edge, workload.clients, own[0]),
    ]
