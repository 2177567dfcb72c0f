"""``ztprobe report``."""

from __future__ import annotations

from pathlib import Path

import click

from ztprobe.cli.options import OutPath, coverage_floor_option, schema_option
from ztprobe.cli.output import say
from ztprobe.errors import UsageError

__all__ = ("report",)


@click.command(epilog="Example: ztprobe report runs/net2-sec3-20260131-120000")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print report.json instead (a list, for several RUNs); without --out, write nothing.",
)
@click.option(
    "--out",
    type=OutPath(),
    help="Write the analysis here and leave the run as it is (of one RUN).",
)
@coverage_floor_option
@schema_option("report", "analysis.report", "report")
def report(runs: tuple[Path, ...], as_json: bool, out: Path | None, coverage_floor: float) -> None:
    """Analyse saved runs again, without root.

    Writes report.json, report.html and figures/ into each, the same bytes every time, and prints the
    table. Of a study's directory (ztprobe sweep) it writes study.html, its tables as CSV, Parquet and LaTeX,
    and figures/.
    """
    if out is not None and len(runs) > 1:
        raise UsageError(f"--out {out}: takes one RUN, and {len(runs)} were given")
    if any((run / "study.json").is_file() for run in runs):
        _report_study(runs, as_json=as_json, out=out)
        return
    from analysis.report.report import read_report, write_report
    from analysis.report.text_report import print_report
    from ztprobe.rundir.store import dump_json

    floor = coverage_floor / 100
    if as_json and out is None:
        reports = [read_report(run, coverage_floor=floor) for run in runs]
    else:
        reports = [write_report(run, out=out, coverage_floor=floor) for run in runs]
    if as_json:
        click.echo(dump_json(reports[0] if len(reports) == 1 else reports), nl=False)
        return
    for run, content in zip(runs, reports, strict=True):
        if len(runs) > 1:
            say(f"\n{run}")
        print_report(content)


def _report_study(runs: tuple[Path, ...], *, as_json: bool, out: Path | None) -> None:
    from analysis.results.study import study_report
    from analysis.results.study_page import write_study
    from analysis.results.study_text import print_study
    from ztprobe.rundir.store import dump_json

    if len(runs) > 1 or out is not None:
        raise UsageError(f"{runs[0]}: a study is reported alone and into its own directory")
    if as_json:
        click.echo(dump_json(study_report(runs[0])), nl=False)
        return
    print_study(write_study(runs[0]))
    say(f"page: {runs[0] / 'study.html'}")
