"""``ztprobe trace``: the options of a trace of what runs already, and which cluster either is about."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ztprobe.cli.agent_observation import (
    are_asked,
    experiment_agents,
    nodes_request,
    refuse_without_agents,
)
from ztprobe.cli.agent_options import agents_options
from ztprobe.cli.options import cluster_access, cluster_options
from ztprobe.cli.otlp import sent
from ztprobe.cli.profile_pods import node_option
from ztprobe.errors import UsageError, WorkloadError, ZtprobeError

if TYPE_CHECKING:
    from ztprobe.attach.nodes.request import NodesRequest
    from ztprobe.progress import Progress
    from ztprobe.runtime.cluster.place import ClusterPlace

__all__ = ("attach_options", "cluster_place", "trace_attached")

_Command = TypeVar("_Command", bound=Callable[..., Any])
_TARGET = "TARGET"
_OPTIONS = (
    click.option(
        "--attach",
        is_flag=True,
        help="Trace a deployment that runs already, whoever brought it up (docs/attach.md).",
    ),
    click.option(
        "--server",
        metavar=_TARGET,
        help="With --attach: pid:N, cmd:PATTERN, cgroup:PATH or unit or container, netns:NAME, or labels of "
        "pods.",
    ),
    click.option(
        "--client",
        "client_targets",
        multiple=True,
        metavar=_TARGET,
        help="With --attach; may be repeated. [default: whoever is connected to the server]",
    ),
    click.option(
        "--hub",
        "hub_targets",
        multiple=True,
        metavar=_TARGET,
        help="With --attach: what stores and forwards between them; may be repeated.",
    ),
    click.option("--for", "for_text", metavar="TIME", help="With --attach: end after 90s, 10m or 1h."),
    click.option(
        "--framework",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="With --attach: whose log --events-from is: flower, nvflare or generic.",
    ),
    click.option(
        "--events-from",
        metavar="FILE",
        help="With --attach: where the rounds stand, JSON events or the framework's log: a file that grows, "
        "a pipe, - for standard input, or pod for the log of a cluster's pod. [default: pod if there is "
        "one, else none: rounds are told from the traffic]",
    ),
    click.option(
        "--runtime",
        type=click.Choice(["local", "kubernetes"]),
        default="local",
        show_default=True,
        help="kubernetes: bring the experiment up on a cluster, on the node where this runs. With --attach: "
        "whose pods labels mean, a cluster's on the node of the server's pod; its clients on other nodes are "
        "seen from the server's side.",
    ),
    click.option(
        "-n",
        "--namespace",
        help="Of a cluster's pods; one that is there. [default: one that is made and removed with each run; "
        "with --attach: default]",
    ),
    click.option(
        "--image",
        metavar="IMAGE",
        help="With --runtime kubernetes: of the workload. [default: what the manifests say]",
    ),
    node_option,
    cluster_options,
    agents_options,
)
_OF_CLUSTER = ("namespace", "node", "context", "kubeconfig")
_OF_AGENTS = ("through", "addresses", "agents_in", "cert", "key", "authority")
_NAMES = (
    *("attach", "server", "client_targets", "hub_targets", "for_text", "framework", "events_from", "runtime"),
    *_OF_CLUSTER,
    *_OF_AGENTS,
)
_ALSO_EXPERIMENT = ("runtime", *_OF_CLUSTER, *_OF_AGENTS, "image")
_ONLY_HERE = ("repeat", "until_ci", "duet", "switch_level", "data_dir")  # on this machine's own runtime
_ALSO_ATTACHED = (*_NAMES, "rounds", "stall_after", "out", "as_json", "coverage_floor", "quiet", "otlp")


def attach_options(command: _Command) -> _Command:
    """Add them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _refuse_others(context: click.Context, attach: bool) -> None:
    """Options of one of the two kinds of trace mean nothing to the other.

    :raises UsageError: one was given.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if attach and name not in _ALSO_ATTACHED:
            raise UsageError(
                f"{parameter.opts[0]}: --attach traces what runs already as it is; leave it away"
            )
        on_cluster = context.params["runtime"] == "kubernetes"
        if name in (*_OF_CLUSTER, "image") and not on_cluster:
            raise UsageError(f"{parameter.opts[-1]}: needs --runtime kubernetes, whose pods it is about")
        if not attach and name in _OF_AGENTS and not on_cluster:
            raise UsageError(f"{parameter.opts[-1]}: needs --runtime kubernetes, whose agents it is about")
        if not attach and on_cluster and name in _ONLY_HERE:
            raise UsageError(
                f"{parameter.opts[0]}: is for runs on this machine, not for --runtime kubernetes"
            )
        if not attach and name in _NAMES and name not in _ALSO_EXPERIMENT:
            raise UsageError(f"{parameter.opts[0]}: needs --attach, which traces what runs already")


def cluster_place(given: Mapping[str, Any]) -> ClusterPlace | None:
    """On which cluster an experiment is to be brought up; None: on this machine.

    :param given: the command's values.
    :raises UsageError: options do not go together.
    :raises PreflightError: agents are asked for, and the cluster has none, or gives no certificate for them.
    """
    if given["runtime"] != "kubernetes":
        return None
    from ztprobe.runtime.cluster.place import ClusterPlace

    place = ClusterPlace(**{name: given[name] for name in (*_OF_CLUSTER, "image")})
    if (access := experiment_agents(given)) is None:
        return place
    from ztprobe.runtime.cluster.agent_nodes import RunAgents

    return replace(place, agents=RunAgents(addresses=tuple(access.agents()), tls=access.tls()))


def trace_attached(context: click.Context) -> bool:
    """Trace, analyse and print what `trace` was asked for with --attach; what there is when it ends is kept.

    :returns: whether --attach was given.
    :raises UsageError: options do not go together.
    """
    given = context.params
    _refuse_others(context, given["attach"])
    if not given["attach"]:
        return False
    from ztprobe.durations import duration_s
    from ztprobe.progress import open_progress

    out = (given["out"] or Path("runs") / f"attached-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    has_rounds = context.get_parameter_source("rounds") is click.core.ParameterSource.COMMANDLINE
    rounds = given["rounds"] if has_rounds else None
    trace: Callable[[Progress], Path]
    nodes: NodesRequest | None = None
    if are_asked(given):
        if given["runtime"] != "kubernetes":
            raise UsageError("--agents and --agent are about a cluster's pods: add --runtime kubernetes")
        for_s = None if given["for_text"] is None else duration_s("--for", given["for_text"])
        nodes, trace = _through_agents(given, out, for_s, rounds)
    else:
        trace = _on_this_machine(given, out, rounds)
    with open_progress(quiet=given["quiet"]) as progress:
        directory = trace(progress)
        progress.stage("analysis")
        report = _report(directory, given["coverage_floor"] / 100, progress.note)
        progress.done(str(directory))
        if nodes is not None:
            _tell_agents(nodes, directory, report, progress.note)
        unsent = sent(report, given["otlp"], directory, progress)
    _print(report, as_json=given["as_json"])
    if unsent is not None:
        raise unsent
    return True


def _through_agents(
    given: Mapping[str, Any], out: Path, for_s: float | None, rounds: int | None
) -> tuple[NodesRequest, Callable[[Progress], Path]]:
    from ztprobe.attach.nodes.transaction import trace_nodes
    from ztprobe.experiment.requirements import check_out

    check_out(out)
    server, clients = given["server"], given["client_targets"]
    request = nodes_request(
        given,
        server=server,
        clients=clients,
        for_s=for_s,
        rounds=rounds,
        stall_after_s=given["stall_after"],
    )
    return request, functools.partial(trace_nodes, request, out)


def _tell_agents(
    request: NodesRequest, directory: Path, report: Mapping[str, Any], note: Callable[[str], None]
) -> None:
    from analysis.results.round_figures import round_figures
    from ztprobe.attach.nodes.transaction import tell_run

    try:
        tell_run(request, directory, round_figures(report))
    except ZtprobeError as error:
        note(f"this run's rounds are not among the agents' metrics: {error}")


def _on_this_machine(given: Mapping[str, Any], out: Path, rounds: int | None) -> Callable[[Progress], Path]:
    from ztprobe.attach.request import make_request
    from ztprobe.attach.transaction import attach_whole
    from ztprobe.experiment.requirements import check_attach

    refuse_without_agents(given)
    request = make_request(
        server=given["server"],
        clients=given["client_targets"],
        hubs=given["hub_targets"],
        out=out,
        for_text=given["for_text"],
        rounds=rounds,
        framework=given["framework"],
        events_from=given["events_from"],
        stall_after_s=given["stall_after"],
        cluster=cluster_access(
            *(given[name] for name in ("runtime", "context", "kubeconfig")),
            namespace=given["namespace"],
            node=given["node"],
        ),
    )
    check_attach(request.out)
    return functools.partial(attach_whole, request)


def _report(directory: Path, coverage_floor: float, note: Callable[[str], None]) -> dict[str, Any]:
    from analysis.causes.diagnosis import top_cause
    from analysis.evidence.no_rounds import why_no_rounds
    from analysis.report.report import write_report
    from ztprobe.errors import RunDirError

    try:
        return write_report(directory, coverage_floor=coverage_floor)
    except BaseException as error:
        note(f"what was seen is kept: `ztprobe report {directory}` analyses it again")
        if isinstance(error, RunDirError) and (seen := why_no_rounds(directory)) is not None:
            why = top_cause(directory)
            raise WorkloadError(
                seen if why is None else f"{seen}; {why}: `ztprobe diagnose {directory}`"
            ) from error
        raise


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    from analysis.report.text_report import print_report
    from ztprobe.rundir.store import dump_json

    if as_json:
        click.echo(dump_json(report), nl=False)
    else:
        print_report(report)
