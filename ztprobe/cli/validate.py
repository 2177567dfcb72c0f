"""``ztprobe validate``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ztprobe.cli import completion
from ztprobe.cli.options import OutPath, quiet_option
from ztprobe.cli.output import say, say_json
from ztprobe.errors import UsageError

if TYPE_CHECKING:
    from ztprobe.validate.scenarios.catalogue import Scenario

__all__ = ("validate",)

_EXIT_MISSED = 7


@click.command(epilog="Example: sudo ztprobe validate --scenario syn-ack-held --scenario proxy-stop")
@click.option(
    "--scenario",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=completion.scenarios,
    help="Only this one; can be repeated. [default: all]",
)
@click.option("--faults", is_flag=True, help="Break runs, and hold the diagnosis against what was broken.")
@click.option("--healthy", is_flag=True, help="With --faults: 30 runs in which nothing is wrong as well.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="With --faults: take up an interrupted one where it was.",
)
@click.option("--list", "only_list", is_flag=True, help="Say what there is and run nothing.")
@click.option(
    "--out",
    type=OutPath(),
    help="The directory to make. [default: runs/validation-<time>, runs/faults-<time>]",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print validation.json or faults.json (with --list: the list) instead of the table.",
)
@quiet_option
def validate(
    names: tuple[str, ...],
    faults: bool,
    healthy: bool,
    resume: Path | None,
    only_list: bool,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put known costs into real runs and hold the ledger against them.

    Each scenario injects one cost of several sizes into one place, observes the injection independently,
    and compares. Ends with 7 if an error is larger than its bound. Needs root.

    With --faults a run is broken in one known way each (a policy, a certificate, a limit, a killed process),
    and `ztprobe diagnose` has to name the cause. Ends with 7 if too many are named wrongly.
    """
    if not faults and (healthy or resume is not None):
        raise UsageError(f"{'--healthy' if healthy else '--resume'} belongs to --faults: give both")
    if faults:
        _faults(names, out, resume=resume, healthy=healthy, only_list=only_list, as_json=as_json, quiet=quiet)
        return
    from ztprobe.validate.scenarios.catalogue import SCENARIOS, choose

    if only_list:
        _list(SCENARIOS, as_json=as_json)
        return
    chosen = choose(names)
    out = (out or Path("runs") / f"validation-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    _check_machine(chosen, out)
    if not _run(chosen, out, as_json=as_json, quiet=quiet):
        raise click.exceptions.Exit(_EXIT_MISSED)


def _faults(
    names: tuple[str, ...],
    out: Path | None,
    *,
    resume: Path | None,
    healthy: bool,
    only_list: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from ztprobe.cli.validate_faults import list_faults, validate_faults

    if only_list:
        list_faults(as_json=as_json)
    elif not validate_faults(names, out, resume=resume, healthy=healthy, as_json=as_json, quiet=quiet):
        raise click.exceptions.Exit(_EXIT_MISSED)


def _list(scenarios: Sequence[Scenario], *, as_json: bool) -> None:
    if as_json:
        keys = ("name", "experiment", "title")
        rows = [{key: getattr(scenario, key) for key in keys} for scenario in scenarios]
        say_json(rows)
        return
    for scenario in scenarios:
        say(f"{scenario.name:<20}{scenario.experiment:<11}{scenario.title}")


def _check_machine(chosen: list[Scenario], out: Path) -> None:
    from ztprobe.experiment.names import parse_experiment
    from ztprobe.experiment.requirements import check_main_job
    from ztprobe.profile.model import profile_names

    experiments = [parse_experiment(scenario.experiment, profile_names()) for scenario in chosen]
    check_main_job(tuple(experiments), out)


def _run(chosen: list[Scenario], out: Path, *, as_json: bool, quiet: bool) -> bool:
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json
    from ztprobe.validate.report import print_table
    from ztprobe.validate.suite import run_suite

    with open_progress(quiet=quiet) as progress:
        content = run_suite(chosen, out, progress)
    if as_json:
        click.echo(dump_json(content), nl=False)
    else:
        print_table(content)
        say(f"{out}/validation.html")
    return bool(content["passed"])
