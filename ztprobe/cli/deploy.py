"""``ztprobe deploy`` and ``ztprobe undeploy``: the agent and experiments on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ztprobe.cli import completion
from ztprobe.cli.options import cluster_options
from ztprobe.cli.output import say, say_json
from ztprobe.errors import UsageError

__all__ = ("deploy", "undeploy")

_Command = TypeVar("_Command", bound=Callable[..., Any])
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_RENDER = click.option("--render", is_flag=True, help="Print the manifests, keys included; ask no cluster.")


def _namespace_option(help_: str) -> Callable[[_Command], _Command]:
    return click.option("-n", "--namespace", metavar="NAMESPACE", help=help_)


@click.group(epilog="Example: ztprobe deploy experiment net2-sec3 --render")
def deploy() -> None:
    """Put the agent or an experiment's workload on a cluster."""


@deploy.command(epilog="Example: ztprobe deploy agent --least-privilege --render")
@click.option("--least-privilege", is_flag=True, help="With the capabilities it needs instead of all.")
@click.option("--image", metavar="IMAGE", help="Of the agent.  [default: what the manifests say]")
@_RENDER
@_namespace_option("One that is there, instead of ztprobe.")
@cluster_options
@_JSON
def agent(
    least_privilege: bool,
    image: str | None,
    render: bool,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    as_json: bool,
) -> None:
    """Put the agent on every node, with certificates.

    Called again, it renews them. The collector's certificate is the Secret ztprobe-collector-tls: whoever may
    read it may have pods traced.
    """
    from ztprobe.kubernetes.agents import AGENTS_NAMESPACE, COLLECTOR_SECRET
    from ztprobe.runtime.cluster.agent import AGENT_RUN, agent_documents

    documents = agent_documents(namespace=namespace, least_privilege=least_privilege, image=image)
    if render:
        _print(documents)
        return
    applied = _apply(documents, context, kubeconfig)
    notes = [
        f"a collector's certificate is in the Secret {namespace or AGENTS_NAMESPACE}/{COLLECTOR_SECRET}",
        "the agent's images are published nowhere: make images builds them",
    ]
    _tell(AGENT_RUN, namespace or "ztprobe", applied, notes, as_json)


@deploy.command(epilog="Example: ztprobe deploy experiment net2-sec3 --clients 5 --rounds 10 --render")
@click.argument("name", shell_complete=completion.experiments)
@click.option("--rounds", type=click.IntRange(1, 100_000), default=10, show_default=True, help="To run.")
@click.option("--clients", type=click.IntRange(1, 200), default=5, show_default=True, help="Pods of clients.")
@click.option(
    "--mtls",
    type=click.Choice(["haproxy", "linkerd"]),
    default="haproxy",
    show_default=True,
    help="Whose sidecars speak mutual TLS; linkerd has never been tried on a Linkerd.",
)
@click.option("--image", metavar="IMAGE", help="Of the workload.  [default: what the manifests say]")
@_RENDER
@_namespace_option("One that is there, instead of one that is made for the run and removed with it.")
@cluster_options
@_JSON
def experiment(
    name: str,
    rounds: int,
    clients: int,
    mtls: str,
    image: str | None,
    render: bool,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    as_json: bool,
) -> None:
    """Put an experiment's server and clients on a cluster, under its security level.

    Everything is of one run: it has a namespace of its own, certificates of its own, and a label by which
    `ztprobe undeploy` finds it. The network profile is not part of it: `ztprobe profile` on the pods' nodes
    puts that into force.
    """
    from ztprobe.experiment.names import parse_experiment
    from ztprobe.leases.records import new_id
    from ztprobe.profile.model import profile_names
    from ztprobe.runtime.cluster.experiment import experiment_documents
    from ztprobe.runtime.interface import WorkloadOptions

    wanted, run = parse_experiment(name, profile_names()), new_id()
    options = WorkloadOptions(
        rounds=rounds,
        clients=clients,
        seed=wanted.seed,
        distribution=wanted.distribution,
        dataset="digits",
        data_dir=None,
        reconnect=False,
        level=wanted.level,
    )
    documents = experiment_documents(
        run, options, namespace=namespace, linkerd=mtls == "linkerd", image=image
    )
    if render:
        _print(documents)
        return
    applied = _apply(documents, context, kubeconfig)
    notes = ["the workload's image is published nowhere: make images builds it"]
    if mtls == "linkerd":
        notes.append("these manifests have never been tried on a Linkerd")
    if namespace is not None and wanted.level == 3:
        notes.append(
            f"Pod Security is a namespace's own: kubectl label namespace {namespace}"
            " pod-security.kubernetes.io/enforce=restricted"
        )
    if wanted.profile != "net0":
        notes.append(f"{wanted.profile} is not in force yet: ztprobe profile apply, on the pods' nodes")
    _tell(run, namespace or f"fl-{run}", applied, notes, as_json)


def _print(documents: Sequence[Any]) -> None:
    import yaml

    click.echo(yaml.safe_dump_all(documents, sort_keys=False, width=100), nl=False)  # all of it, however long


def _apply(documents: Sequence[Any], context: str | None, kubeconfig: str | None) -> list[str]:
    from ztprobe.kubernetes.api import Api
    from ztprobe.kubernetes.changes import changing

    with changing(Api(kubeconfig, context)) as changes:
        return [changes.apply(document) for document in documents]


def _tell(run: str, namespace: str, applied: Sequence[str], notes: Sequence[str], as_json: bool) -> None:
    if as_json:
        say_json({"run": run, "namespace": namespace, "applied": applied, "notes": notes})
        return
    for name in applied:
        say(f"applied: {name}")
    for note in notes:
        say(f"note: {note}")
    say(f"run {run} in namespace {namespace}: ztprobe undeploy {run} removes it")


@click.command(epilog="Example: ztprobe undeploy ab12cd --context staging")
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--all", "every", is_flag=True, help="All runs, and the agent.")
@_namespace_option("Only what is in this one.")
@cluster_options
@_JSON
def undeploy(
    run: str | None,
    every: bool,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    as_json: bool,
) -> None:
    """Remove what `ztprobe deploy` has put on a cluster.

    RUN is what `deploy` printed, or agent; without it, the runs that are there are listed.
    """
    from ztprobe.kubernetes.api import Api
    from ztprobe.kubernetes.changes import changing
    from ztprobe.runtime.cluster.rewriting import RUN_LABEL

    if run is not None and (every or not run.isalnum()):
        raise UsageError(f"undeploy {run}: expected one run, such as ab12cd or agent, or --all")
    with changing(Api(kubeconfig, context)) as changes:
        if run is None and not every:
            found = changes.runs(RUN_LABEL)
            if as_json:
                say_json(found)
                return
            for name, places in found.items():
                say(f"{name}: {', '.join(places)}")
            if not found:
                say("nothing of ztprobe's is there")
            return
        removed = changes.remove(RUN_LABEL if run is None else f"{RUN_LABEL}={run}", namespace)
    if as_json:
        say_json({"removed": removed})
        return
    for name in removed:
        say(f"removed: {name}")
    if not removed:
        say("nothing of that run is there")
