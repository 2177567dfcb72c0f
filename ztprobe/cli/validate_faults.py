"""``ztprobe validate --faults``: its list, its runs and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe.cli.output import say, say_json
from ztprobe.errors import UsageError

if TYPE_CHECKING:
    from ztprobe.validate.faults.plan import PlannedFault

__all__ = ("list_faults", "validate_faults")


def list_faults(*, as_json: bool) -> None:
    """Say which runs there are, and which causes cannot be produced here."""
    from ztprobe.validate.faults.catalogue import LEFT_OUT

    planned = _planned(healthy=False)
    if as_json:
        say_json(
            [
                {"name": one.name, "cause": one.fault.cause, "experiment": one.experiment}
                | {"mode": one.mode, "title": one.variant.what}
                for one in planned
            ]
        )
        return
    for one in planned:
        say(f"{one.name:<38}{one.experiment:<11}{one.mode:<14}{one.variant.what}")
    for left in LEFT_OUT:
        say(f"{left.cause}: left out: {left.said} ({left.tried})")


def validate_faults(
    names: Sequence[str],
    out: Path | None,
    *,
    resume: Path | None,
    healthy: bool,
    as_json: bool,
    quiet: bool,
) -> bool:
    """Make the runs, or what is missing of them; True if enough causes were named rightly.

    :raises UsageError: a name is unknown, or options contradict each other.
    """
    import click

    from ztprobe.experiment.names import parse_experiment
    from ztprobe.experiment.requirements import check_machine, check_main_job
    from ztprobe.profile.model import profile_names
    from ztprobe.progress import open_progress
    from ztprobe.rundir.store import dump_json
    from ztprobe.validate.faults.catalogue import LEFT_OUT
    from ztprobe.validate.faults.plan import choose_faults
    from ztprobe.validate.faults.suite import planned_names, run_faults

    if resume is not None:
        if out is not None or names or healthy:
            raise UsageError(
                "--resume takes up what was asked for then: leave out --out, --scenario, --healthy"
            )
        made, chosen = planned_names(resume), _planned(healthy=True)
        chosen = [one for one in choose_faults(chosen, made) if one.name in made]
    else:
        named = any(name.startswith("healthy") for name in names)
        everything = _planned(healthy=healthy or named)
        chosen = choose_faults(everything, [*names, *(["healthy"] if healthy and names else [])])
    directory = (resume or out or Path("runs") / f"faults-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    experiments = {one.experiment: parse_experiment(one.experiment, profile_names()) for one in chosen}
    if resume is None:
        check_main_job(tuple(experiments.values()), directory)
    else:
        check_machine(tuple(experiments.values()))
    with open_progress(quiet=quiet) as progress:
        content = run_faults(chosen, LEFT_OUT, directory, progress, resumes=resume is not None)
    if as_json:
        click.echo(dump_json(content), nl=False)
    else:
        _print(content)
        say(f"{directory}/faults.json")
    return bool(content["passed"])


def _planned(*, healthy: bool) -> list[PlannedFault]:
    from ztprobe.profile.model import profile_names
    from ztprobe.validate.faults.catalogue import FAULTS
    from ztprobe.validate.faults.catalogue.healthy import healthy_runs
    from ztprobe.validate.faults.plan import plan_faults

    return [*plan_faults(FAULTS), *(healthy_runs(profile_names()) if healthy else ())]


def _print(content: Mapping[str, Any]) -> None:
    for one in content["missed"]:
        named = ", ".join(cause["id"] for cause in one["named"]) or "nothing"
        say(f"missed   {one['name']} ({one['what']}): named {named}")
    for title, key in (
        ("did not show", "did_not_show"),
        ("healthy, and a cause named", "healthy_with_a_cause"),
        ("no policies, and one blamed", "policy_blamed_without_one"),
    ):
        if content[key]:
            say(f"{title}: {', '.join(content[key])}")
    for left in content["left_out"]:
        say(f"left out {left['cause']}: {left['said']}")
    runs = content["faults"]
    if runs:
        first, two = content["first"], content["first_two"]
        say(f"named first {first} of {runs} ({100 * first / runs:.1f} %), in the first two {two} of {runs}")
    if content["healthy"]:
        calm = content["healthy"] - len(content["healthy_with_a_cause"])
        say(f"no cause claimed in {calm} of {content['healthy']} healthy runs")
    say("passed" if content["passed"] else "MISSED")
