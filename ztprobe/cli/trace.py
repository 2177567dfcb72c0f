"""``ztprobe trace``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from ztprobe.cli.options import OutPath, coverage_floor_option, wait_for_quiet_option
from ztprobe.errors import PreflightError
from ztprobe.experiment.names import MAX_SEED
from ztprobe.experiment.request import DATASETS, TraceRequest, check_data_dir, choose_experiments

__all__ = ("trace",)


@click.command(epilog="Example: sudo ztprobe trace --experiment net2-sec3 --rounds 20")
@click.option(
    "--experiment",
    default="net2-sec3",
    show_default=True,
    metavar="NAME",
    help="net<profile>-sec<level>, then if need be -iid or -noniid, and -s<seed>.",
)
@click.option(
    "--baseline",
    metavar="NAME",
    help="Run this first and compare with it. [default: net0-sec0 with the same data, unless that is "
    "the experiment itself]",
)
@click.option("--no-baseline", is_flag=True, help="Run no baseline: the report has no overhead.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Of training.")
@click.option(
    "--clients", type=click.IntRange(min=1), default=5, show_default=True, help="Federated-learning clients."
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    help="Of experiment and baseline. [default: their names', or 0]",
)
@click.option(
    "--dataset",
    type=click.Choice(list(DATASETS)),
    default="digits",
    show_default=True,
    help="digits is built in; the others are read from --data-dir.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Where the IDX files of mnist or fashion-mnist are.",
)
@click.option(
    "--out",
    type=OutPath(),
    help="The run directory to make. [default: runs/<experiment>-<time>]",
)
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the table.")
@click.option("--reconnect", is_flag=True, help="A fresh connection per round and client.")
@wait_for_quiet_option
@coverage_floor_option
def trace(
    experiment: str,
    baseline: str | None,
    no_baseline: bool,
    rounds: int,
    clients: int,
    seed: int | None,
    dataset: str,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    reconnect: bool,
    wait_for_quiet: float | None,
    coverage_floor: float,
) -> None:
    """Run a deployment and say where each round's time went.

    Brings up a federated-learning server and its clients under a network profile and a security level,
    proves that both are in force, watches them from the kernel, prints the breakdown and leaves a run
    directory. Needs root.
    """
    from ztprobe.profile.model import load_profile, profile_names

    chosen, against = choose_experiments(
        experiment, profile_names(), baseline_name=baseline, with_baseline=not no_baseline, seed=seed
    )
    request = TraceRequest(
        experiment=chosen,
        baseline=against,
        rounds=rounds,
        clients=clients,
        dataset=dataset,
        data_dir=check_data_dir(dataset, data_dir),
        out=(out or _default_out(chosen.name)).absolute(),
        reconnect=reconnect,
        wait_for_quiet_s=wait_for_quiet,
    )
    for wanted in request.experiments:
        load_profile(wanted.profile)
    _check_machine(request)
    _run(request, as_json=as_json, coverage_floor=coverage_floor / 100)


def _default_out(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _check_machine(request: TraceRequest) -> None:
    from ztprobe.experiment.requirements import check_main_job

    problems = check_main_job(request.experiments, request.out)
    if problems:
        raise PreflightError("\n".join(problems))


def _run(request: TraceRequest, *, as_json: bool, coverage_floor: float) -> None:
    from analysis.report.report import write_report
    from analysis.report.text_report import print_report
    from ztprobe.experiment.run import run_trace
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json

    with open_progress() as progress:
        out = run_trace(request, progress)
        progress.stage("analysis")
        try:
            report = write_report(out, coverage_floor=coverage_floor)
        except BaseException:
            progress.note(f"the measurement is kept: `ztprobe report {out}` analyses it again")
            raise
        progress.done(str(out))
    if as_json:
        click.echo(dump_json(report), nl=False)
    else:
        print_report(report)
