"""``ztprobe diagnose``: why a round failed, stalled or was slow."""

from __future__ import annotations

from pathlib import Path

import click

from ztprobe.cli.output import say, say_json
from ztprobe.cli.policy_objects import read_files
from ztprobe.errors import UsageError

__all__ = ("diagnose",)


@click.command(epilog="Example: ztprobe diagnose runs/net2-sec3-20260131-120000")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "-f",
    "files",
    metavar="OBJECTS.yaml",
    multiple=True,
    help="The policies and namespaces that were in force.  [default: those that the run recorded]",
)
@click.option("-n", "--namespace", metavar="NAMESPACE", help="Of objects in -f that name none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose(run: Path, files: tuple[str, ...], namespace: str | None, as_json: bool) -> None:
    """Say why rounds of a saved run failed, stalled or were slow.

    RUN is a run directory, also one of a run that failed. Causes come in order, each with the evidence as a
    timeline, what it cost and what to change; a policy that blocks comes with the rule that is missing. A run
    in which nothing went wrong has no cause, and that is said.
    """
    from analysis.causes.diagnosis import diagnose_run
    from analysis.causes.diagnosis_text import diagnosis_lines
    from ztprobe.rundir.store import load_run

    if namespace is not None and not files:
        raise UsageError(f"--namespace {namespace}: is for the objects of -f, and none were given")
    found = diagnose_run(load_run(run), read_files(files, namespace) if files else None)
    if as_json:
        say_json(found)
        return
    for line in diagnosis_lines(found):
        say(line)
