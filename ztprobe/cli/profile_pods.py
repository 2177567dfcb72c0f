"""Which pods ``ztprobe profile`` means, on either runtime, and what cannot be done to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ztprobe.errors import EnforcementError, PreflightError, UsageError

if TYPE_CHECKING:
    from ztprobe.leases.records import Lease
    from ztprobe.pods.model import Pod
    from ztprobe.pods.selectors import Selector
    from ztprobe.pods.source import PodSource

__all__ = (
    "Chosen",
    "choose_pods",
    "node_option",
    "refuse_impossible",
    "refuse_taken",
    "resolve_neighbours",
    "running_pods",
    "runtime_options",
)

_FEW = 32  # everybody speaks to everybody

node_option = click.option(
    "--node",
    metavar="NAME",
    help="This node's name in the cluster. [default: $NODE_NAME, or the host's name]",
)


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which pods there are: of the local runtime, or of a cluster's node."""
    runtime = click.option(
        "--runtime",
        type=click.Choice(["auto", "local", "kubernetes"]),
        default="auto",
        show_default=True,
        help="Whose pods. auto: the local runtime's while a run is going on, else those of the cluster"
        " that KUBECONFIG or a service account names.",
    )
    return runtime(node_option(command))


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The pods of one `profile apply`."""

    pods: tuple[Pod, ...]
    peers: tuple[Pod, ...] | None
    notes: tuple[str, ...] = ()


def choose_pods(
    runtime: str, selector: str, to: str | None, namespace: str, *, run: str | None, node: str | None
) -> Chosen:
    """The pods that the selectors mean, which run on this node now, and the peers of ``--to``.

    :raises ZtprobeError: there are none, or they cannot be reached; says what to do.
    """
    from ztprobe.kubernetes.api import configured
    from ztprobe.kubernetes.pod_source import Cluster
    from ztprobe.pods.local import LocalPods, local_pods
    from ztprobe.pods.selectors import parse_selector

    wanted, towards = parse_selector(selector), parse_selector(to) if to is not None else None
    guessed = runtime == "auto"
    if guessed:
        runtime = "local" if local_pods() or run is not None or not configured() else "kubernetes"
    if runtime == "local":
        return _found_in(LocalPods(run), wanted, towards, namespace)
    if run is not None:
        raise UsageError("--run names a run of the local runtime; leave it out with --runtime kubernetes")
    try:
        return _found_in(Cluster(node), wanted, towards, namespace)
    except PreflightError as error:
        if not guessed:
            raise
        hint = "no run is going on here, so the cluster was asked: --runtime says otherwise"
        raise PreflightError(f"{error} ({hint})") from error


def _found_in(source: PodSource, selector: Selector, to: Selector | None, namespace: str) -> Chosen:
    found = source.pods_here(selector, namespace)
    if to is None:
        return Chosen(pods=found.here, peers=None, notes=found.notes)
    others = source.peers(to, namespace)
    return Chosen(
        pods=found.here, peers=(*others.here, *others.elsewhere), notes=(*found.notes, *others.notes)
    )


def refuse_impossible(profile: str, backend: str, pods: Sequence[Pod]) -> None:
    """What a backend cannot do to these pods.

    :raises PreflightError: a delay line on a cluster's node.
    """
    if "nfqueue" in backend and any(pod.runtime == "kubernetes" for pod in pods):
        raise PreflightError(
            f"{profile} needs netem on a cluster's node (CONFIG_NET_SCH_NETEM), and this kernel has none or"
            " it was not chosen: the delay line that stands in for it queues on a node's forward path,"
            " which is the cluster's own here; a rate alone works without"
        )


def running_pods(leases: Sequence[Lease], node: str | None) -> list[Pod]:
    """Everybody whom pods under these leases can be measured with.

    :raises ZtprobeError: the cluster of a lease does not answer.
    """
    from ztprobe.kubernetes.pod_source import Cluster
    from ztprobe.pods.local import local_pods

    found = local_pods()
    namespaces = sorted(
        {lease.namespace for lease in leases if any(p.runtime == "kubernetes" for p in lease.pods)}
    )
    if namespaces:
        cluster = Cluster(node)
        for namespace in namespaces:
            found += cluster.neighbours(namespace)
    return found


def refuse_taken(pods: Sequence[Pod], directions: Sequence[str], leases: Sequence[Lease]) -> None:
    """:raises EnforcementError: a pod is under another lease in the same direction."""
    from ztprobe.leases.records import words

    # By its namespace: after a restart, a pod of the same name is another one.
    wanted = {pod.netns_inode: pod for pod in pods}
    for lease in leases:
        taken = [pod for pod in lease.pods if pod.netns_inode in wanted]
        if taken and set(lease.directions) & set(directions):
            raise EnforcementError(
                f"{min(str(pod) for pod in taken)} is under {lease.profile.name} already (lease {lease.id}, "
                f"{words(lease.remaining_s)} left): ztprobe profile clear {lease.id}"
            )


def resolve_neighbours(lease: Lease) -> None:
    """Make pods of the local runtime know each other before packets can be lost or late.

    Not where policies are in force, which would drop and count what it takes (neighbours are written
    down there anyway), and not in a cluster, whose pods are not ours to send from.

    :raises EnforcementError: they have ended meanwhile.
    """
    from ztprobe.conformance.policy_bypass import has_policies
    from ztprobe.conformance.udp_probe import warm_up

    met = list({pod.netns_inode: pod for pod in (*lease.pods, *(lease.peers or ()))}.values())
    if len(met) > _FEW or any(pod.runtime != "local" for pod in met):
        return
    try:
        if not any(has_policies(node) for node in {pod.node_netns for pod in met}):
            warm_up(met)
    except FileNotFoundError as error:
        raise EnforcementError(f"the pods are ending: {error.filename or error} is gone") from error
