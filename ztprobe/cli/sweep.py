"""``ztprobe sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli.agent_observation import are_asked, refuse_without_agents
from ztprobe.cli.agent_options import agents_options
from ztprobe.cli.attach_options import cluster_place
from ztprobe.cli.options import OutPath, cluster_options, schema_option
from ztprobe.cli.profile_pods import node_option
from ztprobe.errors import UsageError, WorkloadError

if TYPE_CHECKING:
    from ztprobe.progress import Progress
    from ztprobe.runtime.cluster.place import ClusterPlace
    from ztprobe.study.execution import Tally
    from ztprobe.study.plan import Study

__all__ = ("sweep",)

_OF_CLUSTER = {
    "namespace": "--namespace",
    "node": "--node",
    "image": "--image",
    "context": "--context",
    "kubeconfig": "--kubeconfig",
}


@click.command(
    epilog="Example: sudo ztprobe sweep smoke --runtime kubernetes --node worker-1 --out runs/smoke"
)
@click.argument("study", metavar="STUDY")
@click.option("--out", type=OutPath(), help="The study's directory. [default: runs/STUDY]")
@click.option("--list", "only_list", is_flag=True, help="Print the runs in their order, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print study-report.json instead of the tables.")
@click.option(
    "--runtime",
    type=click.Choice(["local", "kubernetes"]),
    default="local",
    show_default=True,
    help="kubernetes: bring each run up on a cluster: on the node where this runs, one after the other (two"
    " on a node would share its cores), or with --agents on as many nodes at once as there are, without"
    " root. A study's runs are all of one runtime.",
)
@click.option(
    "-n",
    "--namespace",
    help="Of a cluster's pods; one that is there. [default: one that is made and removed with each run]",
)
@click.option(
    "--image",
    metavar="IMAGE",
    help="With --runtime kubernetes: of the workload. [default: what the manifests say]",
)
@node_option
@cluster_options
@agents_options
@schema_option("sweep", "analysis.results", "study-report")
def sweep(study: str, out: Path | None, only_list: bool, as_json: bool, runtime: str, **where: Any) -> None:
    """Run a whole study: every combination of its factors.

    STUDY is a YAML file, or the name of one that comes with ztprobe (smoke, paper-80, dynamic, scale,
    whatif-check, whatif-holdout). Every attempt is kept. A study that was interrupted goes on with what is
    missing, without repeating a run.
    Without --runtime its runs are made on this machine. Needs root, but through agents.
    """
    from ztprobe.cli.fl_options import study_fl_options
    from ztprobe.profile.model import profile_names
    from ztprobe.study.plan import load_study

    plan = load_study(study, profile_names(), study_fl_options)
    if only_list:
        for planned in plan.runs():
            click.echo(planned.directory)
        return
    cluster = _place(runtime, where)
    from analysis.report.wording import plural
    from analysis.results.study_page import write_study
    from analysis.results.study_text import print_study
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json

    place = (out or Path("runs") / plan.name).absolute()
    with open_progress() as progress:
        tally = _carried_out(plan, cluster, place, progress)
    report = write_study(place)
    if as_json:
        click.echo(dump_json(report), nl=False)
    else:
        print_study(report)
        click.echo(f"page: {place / 'study.html'}")
    if tally.failed:
        raise WorkloadError(
            f"{plural(tally.failed, 'run')} of {tally.planned} failed in every attempt; what each said is in"
            f" {place / 'attempts'}"
        )


def _place(runtime: str, where: dict[str, Any]) -> ClusterPlace | None:
    """On which cluster; None: on this machine. :raises UsageError: options that do not go together."""
    if runtime == "kubernetes":
        return cluster_place(where | {"runtime": runtime})
    if are_asked(where):
        raise UsageError("--agents and --agent are about a cluster's pods: add --runtime kubernetes")
    refuse_without_agents(where)
    for name, option in _OF_CLUSTER.items():
        if where[name] is not None:
            raise UsageError(f"{option}: needs --runtime kubernetes, whose pods it is about")
    return None


def _carried_out(plan: Study, cluster: ClusterPlace | None, out: Path, progress: Progress) -> Tally:
    """Make the runs, after all that can be refused beforehand has been."""
    from ztprobe.study.execution import refuse_other_runtime, run_study

    refuse_other_runtime(out, "local" if cluster is None else "kubernetes")
    if cluster is None:
        _check_machine(plan)
        return run_study(plan, out, progress)
    if cluster.agents is None:
        from ztprobe.study.on_cluster import prepared

        plan, cluster = prepared(plan, cluster, out, progress)
        return run_study(plan, out, progress, cluster)
    from ztprobe.study.at_once import run_at_once
    from ztprobe.study.nodes_of_study import places_of

    plan, places = places_of(plan, cluster, cluster.agents, out, progress)
    return run_at_once(plan, places, out, progress)


def _check_machine(plan: Study) -> None:
    from ztprobe.experiment.requirements import check_machine
    from ztprobe.runtime.local import transport

    check_machine([one for cell in plan.cells for one in cell.demands])
    for control in sorted({cell.congestion_control for cell in plan.cells}):
        transport.check(control)
