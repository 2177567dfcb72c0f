"""report.html: one self-contained page about one run.

Built from report.json's content and the figures alone; nothing is loaded from anywhere, the
only scripts are its own, which draw the timeline and sort tables, and the page reads in light, in dark and on
paper.
The figures' ink is replaced with the page's own text colour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from analysis.causes.diagnosis_text import certainty, cost_words, moment_clock
from analysis.report.attachment import attachment_lines, set_up_words
from analysis.report.communication_words import client_columns, communication_lines
from analysis.report.contention_words import machine_rows
from analysis.report.figures import COLOURS, INK, PAPER
from analysis.report.pages import page_environment
from analysis.report.timeline import timeline_data
from analysis.report.wording import (
    CPU_ROW_NAMES,
    PART_NAMES,
    SUB_ROW_NAMES,
    emulation_pairs,
    human_percent,
    human_time,
    interval_words,
    plural,
    schedule_words,
    setting_pairs,
    shown_components,
    shown_sub_rows,
    tls_words,
)
from analysis.report.workload import workload_lines
from ztprobe.printable import printable_tree

__all__ = ("inline_svg", "render_page")


def render_page(report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The page as HTML text. ``figures`` are the SVGs that `draw_figures` gives for this report."""
    report = printable_tree(report)
    environment = page_environment()
    environment.filters |= {"time": human_time, "percent": human_percent, "signed": _signed}
    template = environment.get_template("report.html.j2")
    return template.render(
        r=report,
        figures={name: inline_svg(svg) for name, svg in figures.items()},
        started=datetime.fromtimestamp(report["started_unix_s"], tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
        components=shown_components(report),
        names=PART_NAMES,
        cpu_row_names=CPU_ROW_NAMES,
        sub_row_names=SUB_ROW_NAMES,
        colours=COLOURS,
        sub_rows_of=lambda name: list(shown_sub_rows(report, name)),
        emulation_pairs=emulation_pairs(report["emulation"]),
        attachment_lines=list(attachment_lines(report)) if "attachment" in report else [],
        schedule=schedule_words(report["emulation"]),
        setting_pairs=setting_pairs,
        tls_words=tls_words,
        timeline=timeline_data(report),
        communication_lines=list(communication_lines(report.get("communication", {}))),
        client_columns=client_columns(report["communication"]) if "communication" in report else [],
        set_up=set_up_words(report) if "attachment" in report else "",
        workload_lines=list(workload_lines(report.get("workload", {}))),
        interval=interval_words,
        machine_rows=machine_rows(report),
        certainty=certainty,
        cost_words=cost_words,
        moment_clock=moment_clock,
        plural=plural,
    )


def inline_svg(svg: str) -> Markup:
    """The part of a standalone SVG that stands inside a page; drawn by us, so it is trusted markup."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", body)
    body = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", body, count=1)
    return Markup(body.replace(INK, "currentColor").replace(PAPER, "var(--paper)"))


def _signed(seconds: float | None) -> str:
    return human_time(seconds, signed=True)
