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
        cause="application.keepalive",
        tried="grpc.keepalive_timeout_ms of 60 at the clients on net2, where a ping's answer takes 160 ms",
        said="the run goes through; with a ping a second the server ends it first, by GOAWAY too_many_pings",
    ),
)
