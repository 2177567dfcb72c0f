"""Which pods there will be on the node, and under which address: the manifests' and two of our own.

Those are the DNS pod and an outsider, which no policy means to let in: the proof knocks from there
at doors that ought to be shut. Pure; nothing here touches the machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from ztprobe import policy
from ztprobe.runtime.local import dns, network
from ztprobe.runtime.local.workload import PodPlan, Workload

__all__ = ("OUTSIDER", "loopback_port", "place", "policy_pods", "rules")

OUTSIDER = "outsider"


def place(workload: Workload) -> dict[str, network.PodAddress]:
    """Pod's name -> its place on the node, the workload's pods first.

    :raises UsageError: there are more pods than addresses.
    """
    placed: dict[str, network.PodAddress] = {}
    for pod in workload.pods:
        placed[pod.name] = network.PodAddress(
            name=pod.name,
            namespace=pod.namespace,
            labels=pod.labels,
            loopback_port=loopback_port(pod),
            number=len(placed),
        )
    for name, namespace, labels in (
        (dns.POD, dns.NAMESPACE, dns.LABELS),
        (OUTSIDER, "default", {"app": OUTSIDER}),
    ):
        placed[name] = network.PodAddress(
            name=name,
            namespace=namespace,
            labels=labels,
            loopback_port=None,
            number=len(placed),
        )
    network.addresses(len(placed))
    return placed


def policy_pods(workload: Workload, placed: Mapping[str, network.PodAddress]) -> list[policy.PolicyPod]:
    """The placed pods as NetworkPolicies see them; only the workload's have named ports."""
    ports = {pod.name: pod.ports for pod in workload.pods}
    return [
        policy.PolicyPod(
            name=name,
            namespace=where.namespace,
            labels=where.labels,
            address=where.address,
            ports=ports.get(name, {}),
        )
        for name, where in placed.items()
    ]


def rules(
    workload: Workload, placed: Mapping[str, network.PodAddress], *, check_port_names: bool = True
) -> policy.Ruleset:
    """The workload's NetworkPolicies, compiled. :raises UsageError: see `policy.compile_policies`."""
    return policy.compile_policies(
        workload.policies,
        policy_pods(workload, placed),
        workload.namespaces,
        check_port_names=check_port_names,
    )


def loopback_port(pod: PodPlan) -> int | None:
    """See `ztprobe.runtime.interface.Runtime`."""
    # Both sides of a sidecar are written in the application's own environment.
    if not any(c.sidecar for c in pod.containers):
        return None
    env = pod.application.env
    return int((env.get("FL_LISTEN") or env["FL_SERVER"]).rpartition(":")[2])
