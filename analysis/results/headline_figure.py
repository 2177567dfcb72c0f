"""A study's one figure: where a round's time goes by network and level, and ratios beside those published.

Made from study-rounds.parquet alone; the same record gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.ledger.model import COMPONENTS
from analysis.report.figures import COLOURS, INK, STYLE, svg_text
from analysis.report.wording import PART_NAMES
from analysis.results.headline import HeadlineRow, headline_rows, plain_rounds
from analysis.results.study_rounds import StudyRounds
from ztprobe.printable import printable_tree

__all__ = ("draw_headline",)

_REFERENCE = "net0-sec0"


def draw_headline(rounds: StudyRounds) -> str:
    """A standalone SVG: bars of components on the left; ratios to net0-sec0 on the right.

    :raises RunDirError: the study has no quiet run without further factors.
    """
    rows, frame = headline_rows(rounds), plain_rounds(rounds)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(9.6, 1.5 + 0.32 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_parts(left, rows, frame)
        _draw_ratios(right, rows, frame)
        left.set_yticks(range(len(rows)), [printable_tree(row.group) for row in rows])
        left.set_ylim(len(rows) - 0.5, -0.5)
        figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
        title = f"{printable_tree(rounds.study)}: a round's components, and medians over that of net0-sec0"
        return svg_text("headline", title, figure)


def _draw_parts(axes: Axes, rows: Sequence[HeadlineRow], frame: pd.DataFrame) -> None:
    means_s = frame.groupby("group")[[f"{name}_s" for name in (*COMPONENTS, "residual")]].mean()
    at_s = [0.0] * len(rows)
    for name in (*COMPONENTS, "residual"):
        widths_s = [float(means_s[f"{name}_s"][row.group]) for row in rows]
        if not any(widths_s):
            continue
        axes.barh(
            range(len(rows)),
            widths_s,
            left=at_s,
            height=0.7,
            label=PART_NAMES[name],
            facecolor=COLOURS[name],
            edgecolor=INK,
            linewidth=0.3,
        )
        at_s = [at + width for at, width in zip(at_s, widths_s, strict=True)]
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("mean time a round [s]")


def _draw_ratios(axes: Axes, rows: Sequence[HeadlineRow], frame: pd.DataFrame) -> None:
    medians_s = frame.groupby(["group", "distribution", "seed", "repetition"])["duration_s"].median()
    groups = medians_s.index.get_level_values("group")
    labels = {
        "run": "each run over net0-sec0's of its seed",
        "all": "median of all",
        "published": "published",
    }
    for y, row in enumerate(rows):
        if row.median_over_reference is not None and _REFERENCE in groups:
            ratios = (medians_s[row.group] / medians_s[_REFERENCE]).dropna().to_list()
            axes.plot(ratios, [y] * len(ratios), "x", color=INK, markersize=4, label=labels.pop("run", None))
            axes.plot(
                *([row.median_over_reference], [y], "|"),
                color=INK,
                markersize=16,
                markeredgewidth=2,
                label=labels.pop("all", None),
            )
        if row.published_median_over_reference is not None:
            axes.plot(
                *([row.published_median_over_reference], [y], "D"),
                color="#e0620a",
                markersize=6,
                markerfacecolor="none",
                markeredgewidth=1.4,
                label=labels.pop("published", None),
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("median round over that of net0-sec0")
