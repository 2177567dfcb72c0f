"""A run that has just been made for a study: its report is kept, and it is told if others disturbed it."""

from __future__ import annotations

from pathlib import Path

from analysis.report.contention_words import busy_words
from analysis.report.report import read_report
from analysis.results.summaries import REPORT_FILE
from ztprobe.rundir.store import dump_json, write_atomically

__all__ = ("keep_report",)


def keep_report(run: Path) -> str | None:
    """Analyse a run and write its report.json, which a study of many runs is read from.

    :returns: what others did to the machine in its counted rounds; None: it was quiet, or nobody recorded it.
    :raises RunDirError: the run cannot be analysed, or its report cannot be written.
    """
    report = read_report(run)
    write_atomically(run / REPORT_FILE, dump_json(report))
    return " and ".join(busy_words(report["contention"]["run"])) or None
