"""Which pods ``ztprobe profile`` means, on either runtime, and what cannot be done to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ztprobe.errors import PreflightError, UsageError

if TYPE_CHECKING:
    from ztprobe.leases.following import Following
    from ztprobe.leases.records import Lease
    from ztprobe.pods.model import Pod
    from ztprobe.pods.selectors import Selector
    from ztprobe.pods.source import PodSource

__all__ = (
    "Chosen",
    "choose_pods",
    "node_option",
    "running_pods",
    "runtime_options",
)

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
    follow = click.option(
        "--follow/--no-follow",
        default=True,
        show_default=True,
        help="Also on pods that come or are restarted while it lasts, before their first packet if possible.",
    )
    return runtime(node_option(follow(command)))


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The pods of one `profile apply`."""

    pods: tuple[Pod, ...]
    peers: tuple[Pod, ...] | None
    notes: tuple[str, ...] = ()

    def following(self, at: str, *, replace: bool) -> Following:
        """How the lease on these pods is kept to its selector."""
        from ztprobe.leases.following import Following

        runs = {pod.run for pod in (*self.pods, *(self.peers or ())) if pod.run}
        first = self.pods[0]
        return Following(
            runtime=first.runtime, node=first.node, runs=tuple(sorted(runs)), at=at, replace=replace
        )


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


def running_pods(leases: Sequence[Lease], node: str | None) -> list[Pod]:
    """Everybody whom pods under these leases can be measured with.

    :raises ZtprobeError: the cluster of a lease does not answer.
    """
    from ztprobe.kubernetes.pod_source import Cluster
    from ztprobe.pods.local import local_pods

    found = local_pods()
    namespaces = sorted({lease.namespace for lease in leases if lease.runtime == "kubernetes"})
    if namespaces:
        cluster = Cluster(node)
        for namespace in namespaces:
            found += cluster.neighbours(namespace)
    return found
