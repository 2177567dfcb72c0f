"""``ztprobe trace``."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ztprobe.cli import completion
from ztprobe.cli.attach_options import attach_options, cluster_place, trace_attached
from ztprobe.cli.fl_options import checked_fl_options, fl_options
from ztprobe.cli.options import (
    OutPath,
    coverage_floor_option,
    percent,
    quiet_option,
    schema_option,
    wait_for_quiet_option,
)
from ztprobe.cli.otlp import otlp_option, sent
from ztprobe.errors import UsageError
from ztprobe.experiment.level_switch import LevelSwitch, parse_level_switch
from ztprobe.experiment.names import MAX_SEED, Experiment
from ztprobe.experiment.request import (
    DATASETS,
    STALL_AFTER_S,
    TraceRequest,
    check_data_dir,
    choose_experiments,
)

__all__ = ("trace",)

_OF_ONE_RUN = ("wait_for_quiet", "stall_after", "coverage_floor")  # mean nothing to a study


@click.command(epilog="Example: sudo ztprobe trace --experiment net2-sec3 --rounds 20")
@click.option(
    "--experiment",
    default="net2-sec3",
    show_default=True,
    metavar="NAME",
    shell_complete=completion.experiments,
    help="net<profile>-sec<level>, then if need be -iid or -noniid, and -s<seed>.",
)
@click.option(
    "--profile",
    "profile_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Your own network profile (YAML) in place of the experiment's; the run is called by its name.",
)
@click.option(
    "--baseline",
    metavar="NAME",
    shell_complete=completion.experiments,
    help="Run this first and compare with it. [default: net0-sec0 with the same data, unless that is "
    "the experiment itself; with --fl-... options: the experiment without them]",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    metavar="N",
    help="Run N pairs of baseline and experiment, in either order, and compare the pairs. --out is a study's"
    " directory then, and an interrupted one goes on.",
)
@click.option(
    "--until-ci",
    metavar="PERCENT",
    help="With --repeat: stop as soon as the overhead's interval is no wider than this to either side.",
)
@click.option(
    "--duet",
    is_flag=True,
    help="With --repeat: make both runs of a pair at once, each on half of the cores, so that what slows the"
    " machine meets both alike.",
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
@click.option(
    "--stall-after",
    type=click.FloatRange(1, 86_400),
    default=STALL_AFTER_S,
    show_default=True,
    metavar="SECONDS",
    help="Without data or work for so long, say who waits for whom, and how their connections stand.",
)
@click.option(
    "--switch-level",
    metavar="LEVEL@roundN",
    help="Put another level in force when round N begins, such as sec3@round4, and mark the rounds; clients"
    " connect anew where sidecars come.",
)
@fl_options
@attach_options
@otlp_option
@wait_for_quiet_option
@coverage_floor_option
@schema_option("trace", "ztprobe.rundir", "run")
@quiet_option
@click.pass_context
def trace(
    context: click.Context,
    /,
    experiment: str,
    profile_file: Path | None,
    baseline: str | None,
    repeat: int | None,
    until_ci: str | None,
    duet: bool,
    no_baseline: bool,
    rounds: int,
    clients: int,
    seed: int | None,
    dataset: str,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    reconnect: bool,
    stall_after: float,
    switch_level: str | None,
    wait_for_quiet: float | None,
    coverage_floor: float,
    quiet: bool,
    **more_values: Any,
) -> None:
    """Run a deployment and say where each round's time went.

    Brings up a federated-learning server and its clients under a network profile and a security level,
    proves that both are in force, watches them from the kernel, prints the breakdown and leaves a run
    directory. With --runtime kubernetes it does so on a cluster's node, and with --agents on all of them;
    with --attach it watches a deployment that runs already. Needs root, but through agents.
    """
    if trace_attached(context):
        return
    from ztprobe.profile.model import load_profile, profile_names

    if repeat is not None:
        _refuse_of_one_run(context)
    # A path even where the file is called like a shipped profile.
    profile = None if profile_file is None else load_profile(profile_file.absolute())
    chosen, against = choose_experiments(
        experiment,
        profile_names(),
        profile=profile,
        baseline_name=baseline,
        with_baseline=not no_baseline,
        seed=seed,
    )
    fl = checked_fl_options(more_values, clients=clients)
    if fl and baseline is None and not no_baseline:
        against = dataclasses.replace(chosen)  # what the options cost, all else being equal
    request = TraceRequest(
        experiment=chosen,
        baseline=against,
        rounds=rounds,
        clients=clients,
        dataset=dataset,
        data_dir=check_data_dir(dataset, data_dir),
        out=(out or _default_out(chosen.name)).absolute(),
        reconnect=reconnect,
        profile=profile,
        fl=fl,
        baseline_fl={} if baseline is None else fl,
        wait_for_quiet_s=wait_for_quiet,
        stall_after_s=stall_after,
        level_switch=_switch(switch_level, chosen, rounds),
        place=cluster_place(context.params),
    )
    shown = _Shown(as_json, coverage_floor / 100, quiet, context.params["otlp"])
    _carry_out(request, _Repeated(repeat, until_ci, duet), shown)


def _refuse_of_one_run(context: click.Context) -> None:
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in _OF_ONE_RUN and source is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{parameter.opts[0]}: is for a single run, not for --repeat's: leave one of the two away"
            )


def _switch(text: str | None, experiment: Experiment, rounds: int) -> LevelSwitch | None:
    try:
        return None if text is None else parse_level_switch(text, experiment, rounds)
    except UsageError as error:
        raise UsageError(f"--switch-level {error}") from error


@dataclasses.dataclass(frozen=True)
class _Shown:
    """What becomes of the result."""

    as_json: bool
    coverage_floor: float  # a share
    quiet: bool
    otlp: str | None  # where spans are sent


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """What is asked of pairs, as it was given."""

    pairs: int | None
    until_ci: str | None
    duet: bool

    @property
    def until(self) -> float | None:
        """As a share."""
        return None if self.until_ci is None else percent("--until-ci", self.until_ci)


def _carry_out(request: TraceRequest, repeated: _Repeated, shown: _Shown) -> None:
    from ztprobe.experiment.requirements import check_main_job, check_on_cluster, check_out

    for wanted in request.experiments:
        request.profile_of(wanted)
    if repeated.pairs is None and repeated.until_ci is not None:
        raise UsageError(f"--until-ci {repeated.until_ci}: needs --repeat, the most pairs that may be run")
    if repeated.pairs is None and repeated.duet:
        raise UsageError("--duet: needs --repeat, the number of pairs")
    if repeated.pairs is not None:
        if shown.otlp is not None:
            raise UsageError(
                f"--otlp {shown.otlp}: sends one run; with --repeat there are many, and `ztprobe export RUN"
                " --format otlp --endpoint URL` sends each"
            )
        _repeat(request, repeated, as_json=shown.as_json, quiet=shown.quiet)
        return
    if request.place is None:
        check_main_job(request.demands, request.out)
    else:
        from ztprobe.runtime.cluster.refusals import refuse_old

        if request.place.agents is None:
            check_on_cluster([request.profile_of(each) for each in request.experiments], request.out)
        else:
            check_out(request.out)
        if any(each.mutual_tls for each in request.experiments):
            refuse_old(request.place.api(), [each.level for each in request.experiments])
    _run(request, shown)


def _default_out(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _repeat(request: TraceRequest, repeated: _Repeated, *, as_json: bool, quiet: bool) -> None:
    from analysis.results.comparison_text import print_comparison
    from ztprobe.experiment.requirements import check_machine
    from ztprobe.process.own_cpus import halves
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json
    from ztprobe.study.pairs import run_pairs
    from ztprobe.study.plan import pair_study

    pairs, until = repeated.pairs or 1, repeated.until
    if request.profile is not None:
        raise UsageError(f"--repeat {pairs}: takes the profiles that come with ztprobe, not --profile")
    study = pair_study(request, pairs, duet=repeated.duet)
    if repeated.duet:
        halves()
    check_machine(request.demands)
    with open_progress(quiet=quiet) as progress:
        comparison = run_pairs(study, request.out, progress, until=until)
        progress.note(str(request.out))
    if as_json:
        click.echo(dump_json(comparison), nl=False)
    else:
        print_comparison(comparison)


def _run(request: TraceRequest, shown: _Shown) -> None:
    from analysis.report.report import write_report
    from analysis.report.text_report import print_report
    from ztprobe.experiment.pair import run_pair
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json

    with open_progress(quiet=shown.quiet) as progress:
        out = run_pair(request, progress)
        progress.stage("analysis")
        try:
            report = write_report(out, coverage_floor=shown.coverage_floor)
        except BaseException:
            progress.note(f"the measurement is kept: `ztprobe report {out}` analyses it again")
            raise
        progress.done(str(out))
        unsent = sent(report, shown.otlp, out, progress)
    if shown.as_json:
        click.echo(dump_json(report), nl=False)
    else:
        print_report(report)
    if unsent is not None:
        raise unsent
