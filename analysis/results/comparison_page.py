"""comparison.html: groups of runs beside a reference, drawn and in tables, self-contained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from analysis.report.figures import COLOURS, INK, STYLE, svg_text
from analysis.report.html import inline_svg
from analysis.report.pages import page_environment
from analysis.report.wording import PART_NAMES, plural
from analysis.results.comparison_text import first_words, human_change, pair_words, rows_of
from analysis.results.samples import PARTS
from ztprobe.printable import printable_tree

__all__ = ("render_comparison",)


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    comparison = printable_tree(comparison)
    environment = page_environment(Path(__file__).parent / "templates")
    environment.filters["change"] = human_change
    return environment.get_template("comparison.html.j2").render(
        c=comparison,
        rows_of=rows_of,
        first=first_words([comparison["reference"], *comparison["groups"]]),
        pairs=pair_words(comparison),
        plural=plural,
        drawings=[inline_svg(_draw(group)) for group in comparison["groups"]],
    )


def _draw(group: Mapping[str, Any]) -> str:
    """What each part adds or saves: a dot for the difference, a line for its interval."""
    shown = [part for part in PARTS if group["parts"][part]["delta_s"] or part == "duration"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.6 + 0.3 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        for index, part in enumerate(shown):
            found, colour = group["parts"][part], COLOURS.get(part, INK)
            if found["ci95"] is not None:
                axes.plot(found["ci95"], [index, index], color=colour, linewidth=3, solid_capstyle="butt")
            axes.plot(found["delta_s"], index, "o", color=colour, markeredgecolor=INK, markersize=6)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_yticks(range(len(shown)), [PART_NAMES.get(part, "round") for part in shown])
        axes.invert_yaxis()
        axes.set_xlabel("difference of mean time a round [s], with 95 % interval")
        title = f"What each part of {group['experiment']} takes more or less than the reference"
        return svg_text(f"comparison-{group['experiment']}", title, figure)
