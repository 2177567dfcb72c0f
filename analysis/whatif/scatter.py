"""Predictions against measurements, drawn: on the line they agree, and what is furthest from it is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.report.figures import INK, STYLE, svg_text
from analysis.whatif.text import wrong_parts

__all__ = ("draw_check",)

_MARKERS = "osD^vP*X<>"
_COLOURS = ("#4856c8", "#02985c", "#fb6f0e", "#651f4e", "#ac0000", "#40cdff")
_NAMED = 4  # of the predictions furthest off
_BAND = 0.08


def draw_check(check: Mapping[str, Any]) -> str:
    """A standalone SVG of a check's rows; the same rows give the same bytes."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        title = "Predicted time a round against the measured one, for every question that was checked"
        return svg_text("whatif-check", title, _figure(check))


def _figure(check: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    rows = check["rows"]
    for index, options in enumerate(dict.fromkeys(row["options"] for row in rows)):
        style: dict[str, Any] = {"color": _COLOURS[index % len(_COLOURS)], "linestyle": "none"}
        for number, row in enumerate(row for row in rows if row["options"] == options):
            at = row["measured_s"], row["predicted_s"]
            marker = _MARKERS[index % len(_MARKERS)]
            label = options if number == 0 else None
            axes.plot(*at, marker=marker, markersize=5, label=label, **style)
            for edges, along_x in ((row["measured_ci95"], True), (row["predicted_ci95"], False)):
                if edges is not None:
                    xs, ys = (edges, [at[1]] * 2) if along_x else ([at[0]] * 2, edges)
                    axes.plot(xs, ys, color=style["color"], linewidth=0.8)
    values = [row[key] for row in rows for key in ("measured_s", "predicted_s")]
    ends = [0.8 * min(values), 1.25 * max(values)]
    axes.plot(ends, ends, color=INK, linewidth=0.8)
    axes.fill_between(
        ends, [end * (1 - _BAND) for end in ends], [end * (1 + _BAND) for end in ends], color="#00000018"
    )
    for row in sorted(rows, key=lambda row: -abs(row["error"]))[:_NAMED]:
        names = f"{row['source'].partition(' ')[0]} → {row['target'].partition(' ')[0]}"
        words = f"{names}: {wrong_parts(row)}" if wrong_parts(row) else names
        offset: dict[str, Any] = {"xytext": (6, -3), "textcoords": "offset points"}
        axes.annotate(words, (row["measured_s"], row["predicted_s"]), fontsize=6.5, **offset)
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("measured mean time a round [s]")
    axes.set_ylabel("predicted [s]; grey: 8 % off at most")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)
    return figure
