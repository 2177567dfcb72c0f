"""``ztprobe reproduce``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ztprobe.cli.options import OutPath, quiet_option, schema_option
from ztprobe.errors import WorkloadError

__all__ = ("reproduce",)

_NOT_REPRODUCED = 1
_PUBLISHED = "paper-80"


@click.command(epilog="Example: sudo ztprobe reproduce --out runs/reproduction")
@click.option(
    "--against",
    default=_PUBLISHED,
    show_default=True,
    metavar="STUDY",
    help="The study to hold new runs against: one that comes with ztprobe, or a study's directory.",
)
@click.option("--out", type=OutPath(), help="Where the new runs are kept. [default: runs/reproduction]")
@click.option("--json", "as_json", is_flag=True, help="Print reproduction.json instead of the table.")
@schema_option("reproduce", "analysis.results", "reproduction")
@quiet_option
@click.pass_context
def reproduce(context: click.Context, against: str, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Run a published study's corners anew and say whether they agree.

    Makes eight runs (net0 and net2, sec0 and sec3, two seeds; up to an hour on two cores) with as many rounds
    as the study has, and holds their ratios to net0-sec0 against its 95 % prediction intervals: exit 0 if all
    are inside, 1 if not. A run during which others used the machine is made anew, and left out if it stays
    so. The new runs' own tables and figures are written beside the verdict. What was interrupted goes on.
    Needs root.
    """
    from analysis.results.reproduction import REFERENCE, check_enough, reproduction_of
    from analysis.results.reproduction_text import draw_reproduction, print_reproduction
    from analysis.results.study_files import CONTENTION, failed_attempts
    from analysis.results.study_page import write_study
    from analysis.results.study_rounds import ROUNDS_FILE, read_rounds, rounds_of_study
    from ztprobe.experiment.requirements import check_machine
    from ztprobe.profile.model import profile_names
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json, write_atomically
    from ztprobe.study.execution import run_study
    from ztprobe.study.plan import load_study

    recorded = rounds_of_study(against)
    plan = dataclasses.replace(load_study("reproduce", profile_names()), rounds=recorded.rounds_planned)
    experiments = [cell.experiment for cell in plan.cells]
    like = dataclasses.asdict(plan.cells[0]) | {
        "distribution": experiments[0].distribution,
        "level_switch": "none",
        "options": "",
    }
    names = dict.fromkeys(f"{one.profile}-sec{one.level}" for one in experiments)
    groups = [name for name in names if name != REFERENCE]
    check_enough(recorded, like, groups)  # before an hour of runs
    check_machine(experiments)
    place = (out or Path("runs") / "reproduction").absolute()
    with open_progress(quiet=quiet) as progress:
        tally = run_study(plan, place, progress)
    if tally.failed == tally.planned:
        raise WorkloadError(f"all {tally.planned} runs failed; what each said is in {place / 'attempts'}")
    write_study(place)
    seeds = len({one.seed for one in experiments})
    repeated = sum(
        one["class"] == CONTENTION for cell in plan.cells for one in failed_attempts(place, cell.name)
    )
    found = reproduction_of(recorded, read_rounds(place / ROUNDS_FILE), like, groups, seeds, repeated)
    write_atomically(place / "reproduction.json", dump_json(found))
    write_atomically(place / "figures" / "reproduction.svg", draw_reproduction(found).encode())
    if as_json:
        click.echo(dump_json(found), nl=False)
    else:
        print_reproduction(found)
        click.echo(f"page: {place / 'study.html'}")
        click.echo(f"figure: {place / 'figures' / 'reproduction.svg'}")
    if not found["reproduced"]:
        context.exit(_NOT_REPRODUCED)
