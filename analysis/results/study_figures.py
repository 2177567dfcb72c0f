"""A study drawn: success and round time by network and level, distributions, and what each level adds.

Every figure is a function of study-report.json's content alone; the same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.ledger.model import COMPONENTS
from analysis.report.figures import COLOURS, INK, PAPER, STYLE, shade, svg_text
from analysis.report.wording import PART_NAMES, human_time
from analysis.results.effects_figures import COLOUR_CYCLE, draw_effects, draw_slack
from analysis.results.study_outcome_figures import draw_outcomes
from ztprobe.printable import printable_tree

__all__ = ("draw_study",)

_WIDTH_IN = 9.6
_LINES = ("-", "--", "-.", ":")  # a level each, so that black and white tells them apart
_SHOWN_INTERVALS = 0.03  # of the widest bar: components below have no interval drawn
_TITLES = {
    "success": "Share of the planned runs that are complete, by network and level",
    "median": "Median time a round, by network and level",
    "distribution": "Distribution of round times: share of rounds that took at most so long",
    "interaction": "Median time a round by level, a line for each network",
    "effects": "What mutual TLS and NetworkPolicy cost under each network, by component",
    "decomposed": "What each group takes more than the reference, stacked from its components",
    "success-by-data": "Share of the planned runs that are complete, by data distribution",
    "failures": "Attempts that failed, of all that others did not spoil, by data distribution",
    "p99": "99th percentile of the time a round, by data distribution",
    "accuracy": "Time until accuracy was 95 %, median of the runs that got there, by data distribution",
    "convergence": "Accuracy by round: a line for each group, the range of its runs around it",
    "slack": "How much later each client could have been, by group",
}


def draw_study(report: Mapping[str, Any]) -> dict[str, str]:
    """Name -> standalone SVG; what the study's runs cannot show is left out."""
    report = printable_tree(report)
    drawers: dict[str, Callable[[Mapping[str, Any]], Figure]] = {"success": _draw_success}
    if any(group["median_s"] is not None for group in report["groups"]):
        drawers |= {"median": _draw_median, "distribution": _draw_distribution}
        if len({group["level"] for group in report["groups"]}) > 1:
            drawers["interaction"] = _draw_interaction
    if any(group["overhead"] is not None for group in report["groups"]):
        drawers["decomposed"] = _draw_decomposed
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figures = {name: draw(report) for name, draw in drawers.items()}
        figures |= {
            name: figure
            for name, figure in (("effects", draw_effects(report)), ("slack", draw_slack(report)))
            if figure is not None
        }
        figures |= draw_outcomes(report)
        return {name: svg_text(f"study-{name}", _TITLES[name], one) for name, one in figures.items()}


def _figure(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _plain_numbers(axis: Axis) -> None:
    """On a logarithmic axis: 0.5, 2 and 10 rather than powers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _plain(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Groups that differ in network and level alone, where there are any; else all."""
    return [group for group in groups if not group["variant"]] or list(groups)


def _row(group: Mapping[str, Any]) -> str:
    return f"{group['profile']} {group['variant']}".rstrip()


def _draw_success(report: Mapping[str, Any]) -> Figure:
    """A share needs no interval here: it says what was run, not what would be."""
    return _heatmap(
        report,
        lambda group: group["complete"] / group["planned"] if group["planned"] else None,
        lambda group: f"{group['complete']} of {group['planned']}",
    )


def _draw_median(report: Mapping[str, Any]) -> Figure:
    return _heatmap(report, lambda group: group["median_s"], lambda group: human_time(group["median_s"]))


def _heatmap(
    report: Mapping[str, Any],
    value_of: Callable[[Mapping[str, Any]], float | None],
    words_of: Callable[[Mapping[str, Any]], str],
) -> Figure:
    groups = _plain(report["groups"])
    rows = list(dict.fromkeys(map(_row, groups)))
    levels = sorted({group["level"] for group in groups})
    figure, axes = _figure(0.9 + 0.45 * len(rows))
    values = {(_row(group), group["level"]): value_of(group) for group in groups}
    highest = max((value for value in values.values() if value is not None), default=0.0) or 1.0
    for (row, level), value in values.items():  # vectors: a page of its own loads no picture
        fill: Any = "none" if value is None else shade(value / highest)
        corner = levels.index(level) - 0.5, rows.index(row) - 0.5
        axes.add_artist(Rectangle(corner, 1, 1, facecolor=fill, edgecolor=PAPER, linewidth=1))
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for group in groups:
        x, y = levels.index(group["level"]), rows.index(_row(group))
        axes.text(x, y, words_of(group), ha="center", va="center", color=INK)
    axes.set_xticks(range(len(levels)), [f"sec{level}" for level in levels])
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    return figure


def _draw_distribution(report: Mapping[str, Any]) -> Figure:
    figure, axes = _figure(3.6)
    profiles = list(dict.fromkeys(group["profile"] for group in report["groups"]))
    for group in report["groups"]:
        if not group["durations_s"]:
            continue
        durations_s = np.array([group["durations_s"][0], *group["durations_s"]])
        shares = np.linspace(0, 1, len(durations_s))
        axes.step(
            durations_s,
            shares,
            where="post",
            label=group["name"],
            color=COLOUR_CYCLE[group["level"] % len(COLOUR_CYCLE)],
            linestyle=_LINES[profiles.index(group["profile"]) % len(_LINES)],
            linewidth=1.4,
        )
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.set_xlabel("time a round [s]")
    axes.set_ylabel("share of rounds")
    axes.set_ylim(0, 1.02)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure


def _draw_interaction(report: Mapping[str, Any]) -> Figure:
    """Parallel lines: levels cost the same under every network. On a logarithmic axis: the same factor."""
    figure, axes = _figure(3.4)
    groups = _plain(report["groups"])
    for index, profile in enumerate(dict.fromkeys(group["profile"] for group in groups)):
        line = sorted(
            (group for group in groups if group["profile"] == profile and group["median_s"] is not None),
            key=lambda group: int(group["level"]),
        )
        if not line:
            continue
        levels = [group["level"] for group in line]
        style: dict[str, Any] = {"color": COLOUR_CYCLE[index % 4], "linestyle": _LINES[index % 4]}
        axes.plot(levels, [group["median_s"] for group in line], marker="o", label=profile, **style)
        for group in line:
            if group["median_ci95"] is not None:
                axes.plot([group["level"]] * 2, group["median_ci95"], color=style["color"], linewidth=3)
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    levels = sorted({group["level"] for group in groups})
    axes.set_xticks(levels, [f"sec{level}" for level in levels])
    axes.set_ylabel("median time a round [s]")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _draw_decomposed(report: Mapping[str, Any]) -> Figure:
    """What a part saves stands left of zero, what it adds right of it.

    A line in the bar is the interval of the component that ends there, the one below the bar the whole's.
    """
    groups = [group for group in report["groups"] if group["overhead"] is not None]
    figure, axes = _figure(1.0 + 0.5 * len(groups))
    least_s = _SHOWN_INTERVALS * max(
        abs(group["overhead"]["parts"]["duration"]["delta_s"]) for group in groups
    )
    shown = set()
    for y, group in enumerate(groups):
        parts = group["overhead"]["parts"]
        left = {True: 0.0, False: 0.0}
        for name in (*COMPONENTS, "residual"):
            delta_s = parts[name]["delta_s"]
            if not delta_s:
                continue
            label = None if name in shown else PART_NAMES[name]
            style: dict[str, Any] = {"facecolor": COLOURS[name], "edgecolor": INK, "linewidth": 0.3}
            axes.barh(y, delta_s, left=left[delta_s > 0], height=0.6, label=label, **style)
            left[delta_s > 0] += delta_s
            shown.add(name)
            if abs(delta_s) >= least_s and parts[name]["ci95"] is not None:
                end_s = left[delta_s > 0] - delta_s
                at = y + 0.18 * (list(COMPONENTS).index(name) % 3 - 1 if name in COMPONENTS else 0)
                edges_s = [end_s + edge_s for edge_s in parts[name]["ci95"]]
                axes.plot(edges_s, [at, at], color=PAPER, linewidth=2.2)  # to be seen on any colour
                axes.plot(edges_s, [at, at], color=INK, linewidth=0.9)
        if parts["duration"]["ci95"] is not None:
            axes.plot(parts["duration"]["ci95"], [y + 0.38] * 2, color=INK, linewidth=1.6)
        axes.plot(parts["duration"]["delta_s"], y + 0.38, "|", color=INK, markersize=7)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_yticks(range(len(groups)), [group["name"] for group in groups])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        f"mean time a round more than {report['reference']} [s]; lines: 95 % intervals of the largest"
        " components, below each bar of the whole"
    )
    if axes.get_legend_handles_labels()[0]:  # none where all groups take the same
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure
