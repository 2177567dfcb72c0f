"""A study's outcomes drawn as the published figures have them: both data distributions beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.report.figures import INK, PAPER, shade
from analysis.report.wording import NOTHING, human_time
from analysis.results.effects_figures import COLOUR_CYCLE

__all__ = ("draw_outcomes",)

_WIDTH_IN = 9.6
_LINES = ("-", "--", "-.", ":")
_Row = dict[str, Any]


def draw_outcomes(report: Mapping[str, Any]) -> dict[str, Figure]:
    """Name -> figure; what nothing is known of is left out."""
    rows: list[_Row] = [row for row in report["outcomes"] if not row["variant"]]
    figures: dict[str, Figure] = {}
    if len({row["distribution"] for row in rows}) > 1:  # else the groups' own figures say it
        figures["success-by-data"] = _beside(
            rows, _complete, lambda row: f"{row['complete']} of {row['planned']}"
        )
    if any(row["failed_attempts"] for row in rows):
        figures["failures"] = _beside(
            rows, _failed, lambda row: f"{row['failed_attempts']} of {row['attempts']}"
        )
    for name, key in (("p99", "p99_s"), ("accuracy", "time_to_target_s")):
        if any(row[key] is not None for row in rows):
            timed = [row | {"shown_s": row[key]} for row in rows]
            figures[name] = _beside(timed, lambda row: row["shown_s"], lambda row: human_time(row["shown_s"]))
    curves = [one for one in report["convergence"] if not one["variant"] and len(one["rounds"]) > 1]
    if curves:
        figures["convergence"] = _draw_convergence(curves)
    return figures


def _complete(row: _Row) -> float | None:
    return row["complete"] / row["planned"] if row["planned"] else None


def _failed(row: _Row) -> float | None:
    return row["failed_attempts"] / row["attempts"] if row["attempts"] else None


def _panels(count: int, height_in: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _beside(
    rows: Sequence[_Row], value_of: Callable[[_Row], float | None], words_of: Callable[[_Row], str]
) -> Figure:
    """A heatmap for each distribution, all on one scale of greys."""
    distributions = list(dict.fromkeys(row["distribution"] for row in rows))
    profiles = list(dict.fromkeys(row["profile"] for row in rows))
    levels = sorted({row["level"] for row in rows})
    figure, panels = _panels(len(distributions), 1.2 + 0.45 * len(profiles))
    highest = max((value for row in rows if (value := value_of(row)) is not None), default=0.0) or 1.0
    for axes, distribution in zip(panels, distributions, strict=True):
        for row in (row for row in rows if row["distribution"] == distribution):
            x, y, value = levels.index(row["level"]), profiles.index(row["profile"]), value_of(row)
            fill: Any = "none" if value is None else shade(value / highest)
            axes.add_artist(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor=PAPER))
            axes.text(x, y, NOTHING if value is None else words_of(row), ha="center", va="center", color=INK)
        axes.set_xlim(-0.5, len(levels) - 0.5)
        axes.set_ylim(len(profiles) - 0.5, -0.5)
        axes.set_xticks(range(len(levels)), [f"sec{level}" for level in levels])
        axes.set_yticks(range(len(profiles)), profiles)
        axes.tick_params(length=0)
        axes.set_title(distribution, fontsize=9)
    return figure


def _draw_convergence(curves: Sequence[_Row]) -> Figure:
    """A panel for each distribution, a line for each group with the range of its runs around it."""
    distributions = list(dict.fromkeys(one["distribution"] for one in curves))
    profiles = list(dict.fromkeys(one["profile"] for one in curves))
    figure, panels = _panels(len(distributions), 3.6)
    for axes, distribution in zip(panels, distributions, strict=True):
        for one in (one for one in curves if one["distribution"] == distribution):
            style: dict[str, Any] = {"color": COLOUR_CYCLE[one["level"] % len(COLOUR_CYCLE)]}
            line = _LINES[profiles.index(one["profile"]) % len(_LINES)]
            axes.plot(one["rounds"], one["median"], linestyle=line, label=one["group"], **style)
            axes.fill_between(one["rounds"], one["low"], one["high"], alpha=0.12, linewidth=0, **style)
        axes.set_xlabel("round")
        axes.set_ylim(0, 1)
        axes.set_title(distribution, fontsize=9)
    panels[0].set_ylabel("accuracy: median of runs, and their range")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure
