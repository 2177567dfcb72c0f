"""What two factors do together, drawn by component, and the slack of each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report.figures import COLOURS, INK
from analysis.report.wording import PART_NAMES

__all__ = ("COLOUR_CYCLE", "draw_effects", "draw_slack", "interacting")

_WIDTH_IN = 9.6
COLOUR_CYCLE = ("#5b6ee1", "#02985c", "#e0620a", "#c05299")  # 3:1 on a light page and on a dark one (WCAG)
_MARKERS = ("o", "s", "^", "D")
_WORTH_SHOWING = 0.01  # of the largest effect that is drawn


def interacting(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what is changed, under what) of every pair of factors whose interaction is modelled: mTLS, profile."""
    found = []
    for one in report["effects"]["parts"].get("duration", {}).get("linear", ()):
        if one["kind"] == "interaction" and len(one["changes"]) == 2:
            changed, under = (change[0] for change in one["changes"])
            found.append((changed, under))
    return list(dict.fromkeys(found))


def draw_effects(report: Mapping[str, Any]) -> Figure | None:
    """What security costs under each profile, part by part; None: no such interaction is modelled.

    Points of a row on top of each other: the costs add up.
    """
    pairs = [pair for pair in interacting(report) if pair[1] == "profile"]
    parts = report["effects"]["parts"]
    drawn = [(pair, rows) for pair in pairs if (rows := _rows_of(parts, *pair))]
    if not drawn:
        return None
    heights = [1 + len(rows) for _, rows in drawn]
    figure = Figure(figsize=(_WIDTH_IN, 0.7 * len(drawn) + 0.3 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (_, rows) in zip(panels[:, 0], drawn, strict=True):
        _draw_rows(axes, rows)
    return figure


def _rows_of(parts: Mapping[str, Any], changed: str, under: str) -> dict[str, list[Mapping[str, Any]]]:
    """Part -> the effect under each value of the other factor, for parts in which one can be seen."""
    rows = {
        part: [
            one
            for one in of["linear"]
            if one["kind"] == "under" and one["changes"][0][0] == changed and one["given"][0][0] == under
        ]
        for part, of in parts.items()
    }
    sizes = {part: max((abs(one["delta_s"]) for one in found), default=0.0) for part, found in rows.items()}
    largest = max(sizes.values(), default=0.0)
    return {
        part: found for part, found in rows.items() if sizes[part] and sizes[part] >= _WORTH_SHOWING * largest
    }


def _draw_rows(axes: Axes, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    labels = list(dict.fromkeys(one["name"] for found in rows.values() for one in found))
    for y, found in enumerate(rows.values()):
        for one in found:
            index = labels.index(one["name"])
            at = y + 0.5 * ((index + 0.5) / len(labels) - 0.5)
            colour = COLOUR_CYCLE[index % len(COLOUR_CYCLE)]
            if one["ci95"] is not None:
                axes.plot(one["ci95"], [at, at], color=colour, linewidth=1.6)
            marker = _MARKERS[index % len(_MARKERS)]
            label = one["name"] if y == 0 else None
            axes.plot(one["delta_s"], at, marker, color=colour, markersize=5, label=label)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_yticks(range(len(rows)), ["round" if p == "duration" else PART_NAMES[p] for p in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("mean time a round more [s]; line: 95 % interval")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def draw_slack(report: Mapping[str, Any]) -> Figure | None:
    """Each client's slack by group; how dark a point is says how often that client decided the round."""
    groups = [group for group in report["groups"] if len(group["slack"]) > 1]
    if not groups:
        return None
    rows = sum(len(group["slack"]) for group in groups)
    figure = Figure(figsize=(_WIDTH_IN, 0.8 + 0.16 * rows + 0.1 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    y = 0.0
    ticks, names = [], []
    for group in groups:
        first = y
        for one in group["slack"]:
            if one["ci95"] is not None:
                axes.plot(one["ci95"], [y, y], color=INK, linewidth=0.9)
            filled = str(round(1 - one["decided"], 3))  # a shade of grey
            (point,) = axes.plot(one["slack_s"], y, "o", color=INK, markersize=5, markeredgewidth=0.7)
            point.set_markerfacecolor(filled)
            axes.annotate(
                one["client"], (1.005, y), xycoords=("axes fraction", "data"), fontsize=6, va="center"
            )
            y += 1
        ticks.append((first + y - 1) / 2)
        names.append(group["name"])
        axes.axhline(y - 0.25, color=COLOURS["residual"], linewidth=0.6)
        y += 0.5
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_yticks(ticks, names)
    axes.set_ylim(y - 0.5, -0.75)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("mean slack a round [s]; line: 95 % interval over runs; dark: decides most rounds")
    return figure
