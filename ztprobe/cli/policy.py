"""``ztprobe policy``: what NetworkPolicies and their cluster-wide kin come to, without a cluster.

The objects come from files here; every command works on `ztprobe.policy.model.Objects`, so that a
saved run or a live cluster is another reader and nothing else.
"""

from __future__ import annotations

import click

from ztprobe.cli.policy_objects import PORT, read_files

__all__ = ("policy",)

_DENIED, _UNDECIDABLE = 3, 4

_files = click.option(
    "-f",
    "files",
    metavar="OBJECTS.yaml",
    multiple=True,
    required=True,
    help="Objects as YAML or JSON, lists of them too; - for standard input. May be given several times.",
)
_namespace = click.option(
    "-n",
    "--namespace",
    metavar="NAMESPACE",
    help="Of objects that name none, as in kubectl apply -n. [default]",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(
    epilog="""Example: kubectl get pods,ns,netpol -A -o yaml | ztprobe policy matrix -f -

    Exit codes: 0 allowed, or nothing found; 3 denied, or something found; 4 undecidable."""
)
def policy() -> None:
    """Explain and check NetworkPolicies, ClusterNetworkPolicies and AdminNetworkPolicies.

    Works on files of objects, as kubectl prints and applies them. Verdicts are on new connections, by
    what the API says; network plugins that are known to differ are named.
    """


@policy.command(
    epilog="Example: ztprobe policy explain -f objects.yaml --from fl/client-0 --to fl/server --port 8080/TCP"
)
@_files
@_namespace
@click.option("--from", "source", metavar="NS/POD|IP", required=True, help="Who connects.")
@click.option("--to", "target", metavar="NS/POD|IP", required=True, help="To whom.")
@click.option("--port", type=PORT, metavar="PORT/PROTOCOL", required=True, help="The target's, as 8080/TCP.")
@_as_json
@click.pass_context
def explain(
    context: click.Context,
    files: tuple[str, ...],
    namespace: str | None,
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
    from ztprobe.cli.policy_words import explanation_dict, explanation_lines
    from ztprobe.policy.deviations import possible_deviations
    from ztprobe.policy.explaining import Explainer
    from ztprobe.policy.remedies import missing_rules
    from ztprobe.store import dump_json

    explainer = Explainer(read_files(files, namespace))
    number, protocol = port
    found = explainer.explain(source, target, protocol, number)
    rules = missing_rules(explainer.objects, found)
    slots = (explainer.slots_of(source)[0], explainer.slots_of(target)[0])
    deviations = possible_deviations(explainer.compiled, *slots, protocol)
    if as_json:
        click.echo(dump_json(explanation_dict(found, rules, deviations)), nl=False)
    else:
        for line in explanation_lines(found, rules, deviations):
            click.echo(line)
    context.exit({"denied": _DENIED, "undecidable": _UNDECIDABLE}.get(found.verdict, 0))
