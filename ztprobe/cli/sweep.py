"""``ztprobe sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli.options import OutPath, cluster_options, schema_option
from ztprobe.cli.profile_pods import node_option
from ztprobe.errors import UsageError, WorkloadError

if TYPE_CHECKING:
    from ztprobe.progress import Progress
    from ztprobe.runtime.cluster.place import ClusterPlace
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
    help="kubernetes: bring each run up on a cluster, on the node where this runs, one after the other (two"
    " on a node would share its cores). A study's runs are all of one runtime.",
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
@schema_option("sweep", "analysis.results", "study-report")
def sweep(study: str, out: Path | None, only_list: bool, as_json: bool, runtime: str, **where: Any) -> None:
    """Run a whole study: every combination of its factors.

    STUDY is a YAML file, or the name of one that comes with ztprobe (smoke, paper-80, dynamic, scale,
    whatif-check).
    Every attempt is kept. A study that was interrupted goes on with what is missing, without repeating a run.
    Without --runtime its runs are made on this machine. Needs root.
    """
    from ztprobe.cli.fl_options import study_fl_options
    from ztprobe.profile.model import profile_names
    from ztprobe.study.plan import load_study

    cluster = _place(runtime, where)
    plan = load_study(study, profile_names(), study_fl_options)
    if only_list:
        for planned in plan.runs():
            click.echo(planned.directory)
        return
    from analysis.report.wording import plural
    from analysis.results.study_page import write_study
    from analysis.results.study_text import print_study
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json
    from ztprobe.study.execution import run_study

    place = (out or Path("runs") / plan.name).absolute()
    with open_progress() as progress:
        plan, cluster = _checked(plan, cluster, place, progress)
        tally = run_study(plan, place, progress, cluster)
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
        from ztprobe.runtime.cluster.place import ClusterPlace

        return ClusterPlace(**where)
    for name, option in _OF_CLUSTER.items():
        if where[name] is not None:
            raise UsageError(f"{option}: needs --runtime kubernetes, whose pods it is about")
    return None


def _checked(
    plan: Study, cluster: ClusterPlace | None, out: Path, progress: Progress
) -> tuple[Study, ClusterPlace | None]:
    """What is to be run, after all that can be refused beforehand has been."""
    from ztprobe.study.execution import refuse_other_runtime

    refuse_other_runtime(out, "local" if cluster is None else "kubernetes")
    if cluster is not None:
        from ztprobe.study.on_cluster import prepared

        return prepared(plan, cluster, out, progress)
    from ztprobe.experiment.requirements import check_machine
    from ztprobe.runtime.local import transport

    check_machine([one for cell in plan.cells for one in cell.demands])
    for control in sorted({cell.congestion_control for cell in plan.cells}):
        transport.check(control)
    return plan, None
