"""The confusion matrix as a figure: a row for each cause that was there, a column for each that was named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

__all__ = ("write_confusion",)

_SIDE_INCHES = 0.24
_RIGHT, _WRONG = "#02985c", "#ac0000"


def write_confusion(confusion: Mapping[str, Mapping[str, int]], file: Path) -> None:
    """Write the matrix as SVG; a row's colours are shares of its runs.

    :raises OSError: the file cannot be written.
    """
    rows = list(confusion)
    named = {name for counts in confusion.values() for name in counts}
    columns = [*(row for row in rows if row in named), *sorted(named - set(rows))]
    width, height = (_SIDE_INCHES * len(side) for side in (columns, rows))
    figure = Figure(figsize=(width + 3.6, height + 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        runs = sum(confusion[row].values())
        for x, column in enumerate(columns):
            count = confusion[row].get(column, 0)
            if count:
                colour = _RIGHT if row == column else _WRONG
                axes.add_patch(_square(x, y, colour, count / runs))
                axes.text(x, y, str(count), ha="center", va="center", fontsize=7)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xlabel("named first")
    axes.set_ylabel("injected")
    axes.grid(visible=True, linewidth=0.2)
    axes.set_aspect("equal")
    figure.savefig(file, format="svg", metadata={"Date": None})


def _square(x: int, y: int, colour: str, share: float) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, alpha=0.2 + 0.6 * share, linewidth=0)
