"""``ztprobe policy``: what NetworkPolicies and their cluster-wide kin come to.

Every command works on `ztprobe.policy.model.Objects`: files, a saved run or a live cluster are readers of
them and nothing else.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ztprobe.cli.options import cluster_access, cluster_options
from ztprobe.cli.output import say_whole
from ztprobe.cli.policy_objects import PORT, is_large, read_files, working
from ztprobe.errors import RunDirError, UsageError

if TYPE_CHECKING:
    from ztprobe.kubernetes.access import ClusterAccess
    from ztprobe.policy.model import Objects

__all__ = ("policy",)

_DENIED, _UNDECIDABLE = 3, 4

_option_f = partial(
    click.option,
    "-f",
    "files",
    metavar="OBJECTS.yaml",
    multiple=True,
    help="Objects as YAML or JSON, lists of them too; - for standard input. May be given several times.",
)
_files, _some_files = _option_f(required=True), _option_f()
_namespace = click.option(
    "-n",
    "--namespace",
    metavar="NAMESPACE",
    help="Of objects that name none, as for kubectl apply.  [default: default]",
)
_runtime = click.option(
    "--runtime",
    type=click.Choice(["kubernetes"]),
    help="The objects of the live cluster that KUBECONFIG or a service account names, instead of files.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(
    epilog="""Example: ztprobe policy explain -f all.yaml --from fl/client-0 --to fl/server --port 8080/TCP

    Exit codes: 0 allowed, or nothing found; 3 denied, or something found; 4 undecidable; 2 a file, a
    run or the command line is wrong."""
)
def policy() -> None:
    """Explain and check NetworkPolicies and their cluster-wide kin.

    NetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy and BaselineAdminNetworkPolicy, from files of
    objects as kubectl prints and applies them, or from a live cluster. Verdicts are on new connections,
    by what the API says; network plugins that are known to differ are named.
    """


@policy.command(
    epilog="Example: ztprobe policy explain -f objects.yaml --from fl/client-0 --to fl/server --port 8080/TCP"
)
@_some_files
@_namespace
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A saved run's pods, and its policies unless -f gives others.",
)
@click.option(
    "--at",
    "moment",
    metavar="TIME",
    help="With --run: by the policies in force then: 10:51:42.736 (UTC), a date and time, or round3."
    "  [default: those at its beginning]",
)
@click.option("--from", "source", metavar="NS/POD|IP", required=True, help="Who connects.")
@click.option("--to", "target", metavar="NS/POD|IP", required=True, help="To whom.")
@click.option("--port", type=PORT, metavar="PORT/PROTOCOL", required=True, help="The target's, as 8080/TCP.")
@_runtime
@cluster_options
@_as_json
@click.pass_context
def explain(
    click_context: click.Context,
    /,
    files: tuple[str, ...],
    namespace: str | None,
    run: Path | None,
    moment: str | None,
    runtime: str | None,
    context: str | None,
    kubeconfig: str | None,
    source: str,
    target: str,
    port: tuple[int, str],
    as_json: bool,
) -> None:
    """Whether a connection is allowed, and why.

    Names the policies that select each end, the rule that allows, or those that isolate and the rule that
    is missing, as YAML that kubectl apply takes. Undecidable with the missing fact where the objects do
    not tell.
    """
    from ztprobe.cli.policy_explanation import explanation_dict, explanation_lines
    from ztprobe.policy.deviations import possible_deviations
    from ztprobe.policy.explanation import Explainer
    from ztprobe.policy.remedies import missing_rules
    from ztprobe.rundir.store import dump_json

    cluster = cluster_access(runtime, context, kubeconfig)
    explainer = Explainer(_objects(files, namespace, cluster, run, moment))
    number, protocol = port
    found = explainer.explain(source, target, protocol, number)
    rules = missing_rules(explainer.objects, found)
    slots = (explainer.slots_of(source)[0], explainer.slots_of(target)[0])
    deviations = possible_deviations(explainer.compiled, *slots, protocol)
    if as_json:
        click.echo(dump_json(explanation_dict(found, rules, deviations)), nl=False)
    else:
        for line in explanation_lines(found, rules, deviations):
            say_whole(line)
    click_context.exit({"denied": _DENIED, "undecidable": _UNDECIDABLE}.get(found.verdict, 0))


@policy.command(
    epilog="Example: kubectl get pods,ns,netpol -A -o yaml | ztprobe policy matrix -f - --html reach.html"
)
@_some_files
@_namespace
@_runtime
@cluster_options
@click.option(
    "--html", "html", type=click.Path(path_type=Path), metavar="FILE", help="Write a table to look at."
)
@_as_json
def matrix(
    files: tuple[str, ...],
    namespace: str | None,
    runtime: str | None,
    context: str | None,
    kubeconfig: str | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Who reaches whom, per port.

    Pods that every policy treats alike are one line; `other` stands for the ports that neither a container
    nor a rule names, `outside` for an address that no network in a rule means.
    """
    from ztprobe.cli.policy_tables import matrix_dict, matrix_html, matrix_lines
    from ztprobe.policy.matrix import reach
    from ztprobe.rundir.store import dump_json, write_atomically

    objects = _objects(files, namespace, cluster_access(runtime, context, kubeconfig))
    with working("asking who reaches whom", is_large(objects)):
        found = reach(objects)
    if html is not None:
        write_atomically(html, matrix_html(found).encode())
    if as_json:
        click.echo(dump_json(matrix_dict(found)), nl=False)
    elif html is not None:
        click.echo(f"written: {html}")
    else:
        for line in matrix_lines(found):
            say_whole(line)


@policy.command(epilog="Example: ztprobe policy check -f policies.yaml -f pods.yaml")
@_some_files
@_namespace
@_runtime
@cluster_options
@_as_json
@click.pass_context
def check(
    click_context: click.Context,
    /,
    files: tuple[str, ...],
    namespace: str | None,
    runtime: str | None,
    context: str | None,
    kubeconfig: str | None,
    as_json: bool,
) -> None:
    """What is surely a mistake.

    Selectors and peers that match nothing, names of ports that nobody has, DNS over one protocol only, a
    sidecar's port without a rule, policies that host-network pods ignore, rules that policyTypes leaves
    out. Exits with 3 when there is one.
    """
    from ztprobe.policy.findings import check as check_objects
    from ztprobe.rundir.store import dump_json

    objects = _objects(files, namespace, cluster_access(runtime, context, kubeconfig))
    with working("checking", is_large(objects)):
        found = check_objects(objects)
    if as_json:
        rows = [{"kind": one.kind, "where": one.where, "what": one.what} for one in found]
        click.echo(dump_json(rows), nl=False)
    else:
        for one in found:
            say_whole(f"{one.where}: {one.what}")
        if not objects.pods:
            click.echo("no pods among the objects: selectors and names could not be checked")
        elif not found:
            click.echo(f"no mistake in {_count(len(objects.policies), 'policy', 'policies')}")
    click_context.exit(_DENIED if found else 0)


@policy.command(epilog="Example: ztprobe policy simulate -f proposed.yaml runs/net2-sec3-20260131-120000")
@_files
@_namespace
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@_as_json
@click.pass_context
def simulate(
    context: click.Context, files: tuple[str, ...], namespace: str | None, run: Path, as_json: bool
) -> None:
    """Which connections of a saved run proposed policies would deny.

    The policies given are taken to be all there are; nothing is applied. Connections that nobody answered
    in the run are shown, and count for nothing. Exits with 3 when one that was answered would be denied, 4
    when the objects leave one open.
    """
    from analysis.recorded import recorded_connections, recorded_pods
    from ztprobe.cli.policy_tables import simulation_dict, simulation_lines
    from ztprobe.policy.simulation import merged
    from ztprobe.policy.simulation import simulate as simulate_connections
    from ztprobe.rundir.store import dump_json, load_run

    proposed = read_files(files, namespace)
    try:
        recorded = load_run(run)
    except RunDirError as error:  # whose own exit code means undecidable here
        raise UsageError(str(error)) from error
    objects = merged(proposed, recorded_pods(recorded))
    found = simulate_connections(objects, recorded_connections(recorded))
    if as_json:
        click.echo(dump_json(simulation_dict(found)), nl=False)
    else:
        for line in simulation_lines(found, len(objects.policies)):
            say_whole(line)
    verdicts = {one.explanation.verdict for one in found if one.recorded.answered}
    context.exit(_DENIED if "denied" in verdicts else _UNDECIDABLE if "undecidable" in verdicts else 0)


def _objects(
    files: tuple[str, ...],
    namespace: str | None,
    cluster: ClusterAccess | None,
    run: Path | None = None,
    moment: str | None = None,
) -> Objects:
    if moment is not None and (run is None or files):
        raise UsageError(f"--at {moment}: is about the policies of a saved run (--run, without -f)")
    if cluster is not None:
        return _of_cluster(files, namespace, cluster, run)
    if run is None:
        if not files:
            raise UsageError("-f or --runtime kubernetes (explain: or --run) says where the objects are")
        return read_files(files, namespace)
    from analysis.recorded import objects_at, recorded_objects
    from analysis.results.moments import moment_ns
    from ztprobe.rundir.store import load_run

    given = read_files(files, namespace) if files else None
    try:
        saved = load_run(run)
        if moment is not None:
            objects = objects_at(saved, moment_ns(saved, moment, "--at"))
        else:
            objects = recorded_objects(saved, given)
    except RunDirError as error:  # whose own exit code means undecidable here
        raise UsageError(str(error)) from error
    if objects is None:
        raise UsageError(f"{run}: holds no policies; give those that were in force with -f")
    return objects


def _of_cluster(
    files: tuple[str, ...], namespace: str | None, cluster: ClusterAccess, run: Path | None
) -> Objects:
    from ztprobe.kubernetes.policy_objects import cluster_objects

    for option, given in {"-f": files, "--run": run, "--namespace": namespace}.items():
        if given:
            raise UsageError(f"{option}: --runtime kubernetes takes the cluster's objects; leave one out")
    with working("asking the cluster", long=True):
        return cluster_objects(cluster.api())


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
