"""``ztprobe sweep``."""

from __future__ import annotations

from pathlib import Path

import click

from ztprobe.cli.options import OutPath, schema_option
from ztprobe.errors import WorkloadError

__all__ = ("sweep",)


@click.command(epilog="Example: sudo ztprobe sweep smoke --out runs/smoke")
@click.argument("study", metavar="STUDY")
@click.option("--out", type=OutPath(), help="The study's directory. [default: runs/STUDY]")
@click.option("--list", "only_list", is_flag=True, help="Print the runs in their order, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print study-report.json instead of the tables.")
@schema_option("sweep", "analysis.results", "study-report")
def sweep(study: str, out: Path | None, only_list: bool, as_json: bool) -> None:
    """Run a whole study: every combination of its factors.

    STUDY is a YAML file, or the name of one that comes with ztprobe (smoke, paper-80, dynamic, scale,
    whatif-check).
    Every attempt is kept. A study that was interrupted goes on with what is missing, without repeating a run.
    Needs root.
    """
    from ztprobe.cli.fl_options import study_fl_options
    from ztprobe.profile.model import profile_names
    from ztprobe.study.plan import load_study

    plan = load_study(study, profile_names(), study_fl_options)
    if only_list:
        for planned in plan.runs():
            click.echo(planned.directory)
        return
    from analysis.report.wording import plural
    from analysis.results.study_page import write_study
    from analysis.results.study_text import print_study
    from ztprobe.experiment.requirements import check_machine
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json
    from ztprobe.runtime.local import transport
    from ztprobe.study.execution import run_study

    check_machine([one for cell in plan.cells for one in cell.demands])
    for control in sorted({cell.congestion_control for cell in plan.cells}):
        transport.check(control)
    place = (out or Path("runs") / plan.name).absolute()
    with open_progress() as progress:
        tally = run_study(plan, place, progress)
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
