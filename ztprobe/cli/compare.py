"""``ztprobe compare``."""

from __future__ import annotations

from pathlib import Path

import click

from ztprobe.cli.options import OutPath, percent, schema_option
from ztprobe.errors import UsageError

__all__ = ("compare",)

_WORSE = 1


@click.command(epilog="Example: ztprobe compare runs/before runs/after --fail-above 5%")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print comparison.json instead of the tables.")
@click.option("--out", type=OutPath(), help="Write comparison.json and comparison.html into this directory.")
@click.option(
    "--fail-above",
    metavar="PERCENT",
    help="Exit 1 when a round takes more than this longer than the reference, its interval included.",
)
@schema_option("compare", "analysis.results", "comparison")
@click.pass_context
def compare(
    context: click.Context, runs: tuple[Path, ...], as_json: bool, out: Path | None, fail_above: str | None
) -> None:
    """Say how runs differ from the first, part by part, with intervals.

    Each RUN is a run directory, or a directory of runs of one experiment (repetitions, which are taken
    together). With two runs or more on each side the intervals cover what differs between runs.
    """
    limit = None if fail_above is None else percent("--fail-above", fail_above)
    if len(runs) < 2:
        raise UsageError(f"RUN: one was given ({runs[0]}), and comparing takes two or more")
    from analysis.results.comparison import compare as compare_groups
    from analysis.results.comparison import worse_by
    from analysis.results.comparison_text import human_change, print_comparison
    from analysis.results.samples import load_group
    from ztprobe.rundir.store import dump_json, write_atomically

    comparison = compare_groups([load_group(run) for run in runs])
    if out is not None:
        from analysis.results.comparison_page import render_comparison

        page = render_comparison(comparison)
        write_atomically(out / "comparison.html", page.encode())
        write_atomically(out / "comparison.json", dump_json(comparison))
    if as_json:
        click.echo(dump_json(comparison), nl=False)
    else:
        print_comparison(comparison)
    if limit is None:
        return
    for group in comparison["groups"]:
        least = worse_by(group)
        if least is None:
            raise UsageError(f"--fail-above: {group['path']} has no interval to judge by ({group['method']})")
        if least > limit:
            click.echo(
                f"ztprobe: {group['path']}: rounds take at least {human_change(least)} of time, more than"
                f" --fail-above {fail_above}",
                err=True,
            )
            context.exit(_WORSE)
