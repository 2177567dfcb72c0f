"""A report of the made-up runs, and what the terminal shows of one."""

from __future__ import annotations

import io
from typing import Any

from analysis.report.report import build_report
from analysis.report.text_report import print_report
from tests.unit.synthetic_run import baseline_pair, make_ledger, make_run


def make_report() -> dict[str, Any]:
    """report.json of net2-sec3 against net0-sec0."""
    ledger = make_ledger()
    return build_report(make_run(ledger=ledger), ledger, baseline_pair())


def text_of(report: dict[str, Any], **options: Any) -> str:
    """What the terminal shows of a report; options as of `print_report`."""
    stream = io.StringIO()
    print_report(report, stream, **options)
    return stream.getvalue()
