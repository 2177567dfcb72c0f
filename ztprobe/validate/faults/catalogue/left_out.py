"""Causes that are not injected here, each with what was tried and what came of it."""

from __future__ import annotations

from ztprobe.validate.faults.model import LeftOut

__all__ = ("LEFT_OUT",)

LEFT_OUT = (
    LeftOut(
        cause="policy.denied_by_rule",
        tried="a ClusterNetworkPolicy among the objects of sec1",
        said="manifests: ClusterNetworkPolicy deny-clients: the local runtime knows ConfigMap, Deployment,"
        " Job, Namespace, NetworkPolicy, Role, RoleBinding, Service, ServiceAccount",
    ),
    LeftOut(
        cause="resources.receive_buffer_full",
        tried="tcp_rmem of 4096 bytes at the server and at a client, messages of 4.8 MB",
        said="no PruneCalled and no TCPRcvQDrop in /proc/net/netstat: the kernel offers a smaller window",
    ),
    LeftOut(
        cause="application.pod_restarted",
        tried="kill -TERM of a client's process",
        said="the run ends: fl-client-1/client exited with status 143; the local runtime restarts no"
        " container",
    ),
)
