"""``ztprobe limits``."""

from __future__ import annotations

from pathlib import Path

import click

from ztprobe.cli import completion
from ztprobe.cli.options import OutPath, percent, quiet_option

__all__ = ("limits",)

_VARIED = ("delay", "loss", "rate", "clients-missing")


@click.command(epilog="Example: sudo ztprobe limits --experiment net0-sec3 --vary delay --to 10000")
@click.option(
    "--experiment",
    default="net0-sec0",
    show_default=True,
    metavar="NAME",
    shell_complete=completion.experiments,
    help="What is brought up at every value.",
)
@click.option(
    "--vary",
    type=click.Choice(_VARIED),
    required=True,
    help="One-way delay (ms), loss (per cent), rate (Mbit/s), or how many clients stand still.",
)
@click.option(
    "--from", "easiest", type=click.FloatRange(min=0), metavar="VALUE", help="Where it works. [default: mild]"
)
@click.option(
    "--to", "hardest", type=click.FloatRange(min=0), metavar="VALUE", help="Where it fails. [default: severe]"
)
@click.option(
    "--precision",
    default="10%",
    show_default=True,
    metavar="PERCENT",
    help="How far the last value that works and the first that fails may lie apart.",
)
@click.option(
    "--confirm",
    type=click.IntRange(0, 100),
    default=1,
    show_default=True,
    metavar="N",
    help="More runs on either side of the threshold, each with another seed.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Of every run.")
@click.option("--clients", type=click.IntRange(min=1), default=5, show_default=True, help="Of every run.")
@click.option(
    "--round-deadline",
    type=click.FloatRange(1, 86_400),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="The server's own: a round that has too few updates by then ends the run.",
)
@click.option("--out", type=OutPath(), help="The search's directory. [default: runs/limits-NAME-VARIED]")
@click.option("--json", "as_json", is_flag=True, help="Print limits-report.json instead of the table.")
@quiet_option
def limits(
    experiment: str,
    vary: str,
    easiest: float | None,
    hardest: float | None,
    precision: str,
    confirm: int,
    rounds: int,
    clients: int,
    round_deadline: float,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find out where a deployment stops working, and what breaks.

    Runs it at one value after the other, halving the distance between the last that works and the first
    that fails, and says of both where the rounds' time went and what broke. Every run is kept; a search that
    was interrupted goes on. Needs root.
    """
    from ztprobe.experiment.names import parse_experiment
    from ztprobe.profile.model import profile_names
    from ztprobe.study.limits import Search

    chosen = parse_experiment(experiment, profile_names())
    search = Search.of_axis(
        vary,
        easiest,
        hardest,
        experiment=chosen,
        precision=percent("--precision", precision),
        rounds=rounds,
        clients=clients,
        round_deadline_s=round_deadline,
        confirmations=confirm,
    )
    from analysis.results.limits_text import print_limits
    from ztprobe.experiment.requirements import check_machine
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json
    from ztprobe.study.limits import run_search

    check_machine([chosen])
    place = (out or Path("runs") / f"limits-{chosen.name}-{vary}").absolute()
    with open_progress(quiet=quiet) as progress:
        report = run_search(search, place, progress)
        progress.note(str(place))
    if as_json:
        click.echo(dump_json(report), nl=False)
    else:
        print_limits(report)
