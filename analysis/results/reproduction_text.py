"""What came of a reproduction, as a table in at most 100 columns and as a figure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import IO, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.report.figures import INK, STYLE, svg_text
from analysis.report.text_report import WIDTH
from analysis.report.wording import NOTHING, listed, plural
from ztprobe.printable import printable_tree

__all__ = ("draw_reproduction", "print_reproduction")

_MOST_NAMED = 4  # runs, in a sentence


def print_reproduction(found: Mapping[str, Any], stream: IO[str] | None = None) -> None:
    """Print the ratios, what was to be expected, and the verdict."""
    found = printable_tree(found)
    console = Console(file=stream or sys.stdout, width=WIDTH, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(f"median round over {found['reference']}")
    for name in (f"in {found['study']}", "95 % prediction", "seen", "of each run", ""):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        edges = row["interval95"]
        table.add_row(
            Text(row["group"]),
            _times(row["recorded_ratio"]),
            NOTHING if edges is None else f"{edges[0]:.3g} … {edges[1]:.3g}",
            _times(row["seen_ratio"]),
            ", ".join(f"{ratio:.3g}" for ratio in row["seen_ratios"].values()) or NOTHING,
            _verdict(row),
        )
    with console.capture() as printed:
        if found["left_out"]:
            words = (
                f"others used the machine during {len(found['left_out'])} of {plural(found['runs'], 'run')},"
                f" which are left out: delete {listed(found['left_out'], _MOST_NAMED)} and start again on a"
                " quiet machine to have them made anew"
            )
            console.print(Text(f"read this first: {words}", style="bold"))
        if found["repeated_runs"]:
            again = f"{plural(found['repeated_runs'], 'run')} made anew, as others used the machine meanwhile"
            console.print(Text(again))
        console.print(table)
        console.print(Text(_sentence(found), style="bold"))
        console.print(Text(_conditions(found)))
    console.file.write(printed.get())


def _times(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"× {ratio:.3g}"


def _verdict(row: Mapping[str, Any]) -> str:
    if row["missing"]:
        return f"{plural(row['missing'], 'quiet run')} missing"
    return "inside" if row["inside"] else "OUTSIDE"


def _sentence(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    inside = sum(row["inside"] is True for row in rows)
    verdict = "Reproduced" if found["reproduced"] else "Not reproduced"
    chance = 1 - found["level"] ** len(rows)
    return (
        f"{verdict}: {inside} of {plural(len(rows), 'ratio')} inside what {found['study']} predicts (in up to"
        f" {chance * 100:.0f} of 100 reproductions one or more falls outside by chance)."
    )


def _conditions(found: Mapping[str, Any]) -> str:
    sides = []
    for side, words in (("recorded", found["study"]), ("new", "these runs")):
        one = found["conditions"][side]
        sides.append(
            f"{words}: Linux {', '.join(one['kernel'])}, emulated by {', '.join(one['backend'])},"
            f" {plural(int(one['rounds'][0]), 'round')} a run"
        )
    return "; ".join(sides)


def draw_reproduction(found: Mapping[str, Any]) -> str:
    """A standalone SVG: each interval as a line, the study's ratios above it, the new ones as crosses."""
    found = printable_tree(found)
    rows = found["rows"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(9.6, 1.1 + 0.6 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            if row["interval95"] is not None:
                axes.plot(row["interval95"], [y, y], color="#7d8894", linewidth=6, solid_capstyle="butt")
            old, new = list(row["recorded_ratios"].values()), list(row["seen_ratios"].values())
            axes.plot(old, [y - 0.25] * len(old), "o", color=INK, markersize=4, mfc="none")
            axes.plot(new, [y] * len(new), "x", color=INK, markersize=6)
            if row["seen_ratio"] is not None:
                axes.plot([row["seen_ratio"]], [y], "|", color=INK, markersize=16, markeredgewidth=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(rows)), [row["group"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.6)
        axes.set_xlabel(
            f"median round over that of {found['reference']}; grey: 95 % prediction interval of"
            f" {found['study']},\nwhose runs are circles; crosses: new runs, bar: their mean"
        )
        title = f"New runs held against {found['study']}"
        return svg_text("reproduction", title, figure)
