"""All chosen scenarios, one after the other, and the report about them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ztprobe.errors import EnforcementError, RunDirError, WorkloadError
from ztprobe.progress import Progress
from ztprobe.rundir import files
from ztprobe.runtime.local.journal import appearing_whole, clean_leftovers
from ztprobe.validate.model import Bound, Outcome
from ztprobe.validate.report import as_json, write_report
from ztprobe.validate.runner import run_scenario
from ztprobe.validate.scenarios.catalogue import Scenario

__all__ = ("run_suite",)


def run_suite(chosen: Sequence[Scenario], out: Path, progress: Progress) -> dict[str, Any]:
    """Run the scenarios, each into a run directory below ``out``; returns validation.json's content.

    A scenario that breaks counts as missed and does not keep the others from running. ``out`` is there
    when all is: until then everything is beside it, and goes if the command ends early.

    :raises ZtprobeError: the machine refuses something that all need.
    """
    for line in clean_leftovers():
        progress.note(f"left by an interrupted run: {line}")
    if out.exists() and any(out.iterdir()):
        raise RunDirError(f"{out}: is not empty; choose another --out, a run never overwrites a run")
    try:
        with appearing_whole(out) as partial:
            outcomes = [_one(scenario, partial, progress) for scenario in chosen]
            content = as_json(outcomes, {"kernel": platform.release(), "machine": platform.machine()})
            write_report(partial, content)
    except OSError as error:
        raise RunDirError(f"{out}: cannot be made: {error.strerror}; choose another --out") from error
    return content


def _one(scenario: Scenario, out: Path, progress: Progress) -> Outcome:
    progress.stage(scenario.name, f"{scenario.title}, {len(scenario.sizes)} rounds of {scenario.experiment}")
    try:
        outcome = run_scenario(scenario, out / scenario.name)
    except (WorkloadError, EnforcementError) as error:
        files.remove_tree(out / scenario.name)
        outcome = _broken(scenario, str(error))
    progress.done(_summary(outcome))
    return outcome


def _summary(outcome: Outcome) -> str:
    if outcome.problems:
        return f"FAILED: {outcome.problems[0]}"
    # A bound of nothing belongs to a cost of nothing, which is a problem of its own.
    worst = max(abs(case.error_ns) / max(case.bound_ns, 1.0) for case in outcome.cases)
    return f"{'passed' if outcome.passed else 'MISSED'}: largest error {worst:.0%} of its bound"


def _broken(scenario: Scenario, problem: str) -> Outcome:
    return Outcome(
        name=scenario.name,
        title=scenario.title,
        background=f"{scenario.experiment}, {scenario.background}",
        bound=Bound(),
        cases=(),
        problems=(problem,),
        run_dir=scenario.name,
    )
