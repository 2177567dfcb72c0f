"""Drawings of a report, as SVG text: the breakdown, the stacked rounds, the overhead, the clients.

Each figure is a function of report.json's content alone, and the same report gives the
same bytes (fixed salt for ids, no date, no user's matplotlibrc). Text stays text. Every
component has one colour everywhere; under simulated deuteranopia, protanopia and
tritanopia any two of them stay apart (a test holds them to it), and where they touch a
line separates them. Ink is drawn in one colour that the page may replace with its own.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.report.wording import (
    PART_NAMES,
    SUB_ROW_NAMES,
    human_percent,
    human_time,
    shown_components,
    shown_sub_rows,
)
from ztprobe.printable import printable_tree

__all__ = ("COLOURS", "INK", "PAPER", "STYLE", "draw_figures", "shade", "svg_text")

COLOURS = {
    "server": "#ffcb7b",
    "compute": "#02985c",
    "dns": "#d87abc",
    "tcp_handshake": "#9e2b8f",
    "tls_handshake": "#651f4e",
    "http2_setup": "#965c78",
    "proxy": "#fb6f0e",
    "propagation": "#40cdff",
    "transmission": "#4856c8",
    "retransmission": "#ac0000",
    "policy_drop": "#111111",
    "store_and_forward": "#001188",
    "poll_wait": "#bbffbb",
    "task_start": "#7700ff",
    "client_and_return_path": "#554433",
    "residual": "#c8c8c8",
}
INK = "#1c2024"
PAPER = "#fefefe"  # on a page it is the page's own, as ink is the text's colour
# On white these have less contrast than 3:1 (WCAG 1.4.11), so a line of ink goes around them.
_PALE = ("server", "dns", "proxy", "propagation", "poll_wait", "residual")

_TITLES = {
    "breakdown": "Median time a round per component, as bars",
    "rounds": "Every round's duration, stacked from its components",
    "clients": "Which client decided each round, and how much slack the others had",
    "overhead": "What each component costs more than the baseline, with its interval",
}
_WIDTH_IN = 9.6
_NOTE_WIDTH = 0.14  # of the breakdown's axis: what the longest number beside a bar takes
_STRIPS = {"delay_ms": "delay\n[ms]", "loss_pct": "loss\n[%]", "rate_mbit": "rate\n[Mbit/s]"}
# Numbers fit into the matrix's cells up to here; beyond, shades have to do.
_NUMBERED_ROUNDS = 12
_SLACK_SHADES = (  # up to this part of the round's duration, fill
    (0.01, "#4d5661"),
    (0.05, "#7d8894"),
    (0.10, "#a9b2bc"),
    (0.20, "#d0d6dc"),
    (float("inf"), "#eef1f4"),
)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ztprobe",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a client may be called $x$
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw_figures(report: Mapping[str, Any]) -> dict[str, str]:
    """Name -> standalone SVG: breakdown, rounds, clients, and overhead where there is a baseline."""
    drawers: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
        "breakdown": _draw_breakdown,
        "rounds": _draw_rounds,
        "clients": _draw_clients,
    }
    if report["overhead"]:
        drawers["overhead"] = _draw_overhead
    report = printable_tree(report)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        return {name: svg_text(name, _TITLES[name], draw(report)) for name, draw in drawers.items()}


def svg_text(name: str, title: str, figure: Figure) -> str:
    stream = io.StringIO()
    # What Figure.savefig does, without its rehearsal: that draws everything once more for the layout.
    canvas = FigureCanvasSVG(figure)
    canvas.print_svg(stream, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    # Several figures may share a page, so that their ids must not meet.
    name = re.sub("[^A-Za-z0-9_-]", "-", name)  # it may hold a run's name, which anybody may have given
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", stream.getvalue())
    # For whoever hears the page, and beside the pointer; the element's first child, as SVG wants it.
    attributes = f' role="img" aria-labelledby="{name}-title"'
    title = f'<title id="{name}-title">{html.escape(title)}</title>'
    text = re.sub(r"<svg\b([^>]*)>", lambda tag: f"<svg{tag[1]}{attributes}>\n {title}", text, count=1)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _figure(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def shade(part: float) -> tuple[str, float]:
    """Fill of a heatmap's cell, of the ink, so that what is written on it is read in the dark as well.

    :param part: of the largest value, 0 to 1.
    """
    return INK, 0.04 + 0.26 * part


def _bar_style(name: str) -> dict[str, Any]:
    style: dict[str, Any] = {"facecolor": COLOURS[name], "edgecolor": "#ffffff", "linewidth": 0.5}
    if name in _PALE:
        style["edgecolor"] = INK
    if name == "residual":
        style |= {"hatch": "////", "edgecolor": "#7a7a7a"}
    if name == "policy_drop":
        style |= {"hatch": "xxxx", "edgecolor": "#9a9a9a"}
    return style


def _faint(name: str) -> dict[str, Any]:
    """For what belongs to a component and is not the component itself: a wash within a line."""
    colour = COLOURS.get(name, INK)
    line = INK if name in _PALE else colour
    return {"facecolor": to_rgba(colour, 0.45), "edgecolor": line, "linewidth": 0.5}


def _label(axes: Axes, x: float, y: float, text: str, size: float) -> None:
    # An offset, because SVG swallows leading spaces.
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=size)


def _draw_breakdown(report: Mapping[str, Any]) -> Figure:
    """Median time a round per component, sub-rows below their component, the baseline as a tick."""
    overhead = report["overhead"]
    baseline = {}
    if overhead:
        baseline = {**overhead["baseline_components"], "residual": overhead["baseline_residual"]}
    rows: list[tuple[str, str | None, Mapping[str, Any]]] = []
    for name in shown_components(report):
        rows.append((name, None, report["components"][name]))
        rows += [(name, row, part) for row, part in shown_sub_rows(report, name)]
    rows.append(("residual", None, report["residual"]))
    figure, axes = _figure(0.75 + sum(0.30 if row is None else 0.20 for _, row, _ in rows))
    before = {
        name: baseline[name]["median_s"] or 0.0 for name, row, _ in rows if row is None and name in baseline
    }
    limit = 1.22 * max([*(part["median_s"] or 0.0 for _, _, part in rows), *before.values()]) or 1
    axes.set_xlim(0, limit)
    y, ticks = 0.0, []
    for name, row, part in rows:
        height = 0.30 if row is None else 0.20
        y -= height / 2
        value = part["median_s"] or 0.0
        if row is None:
            axes.barh(y, value, height=0.22, **_bar_style(name))
            note, size = f"{human_time(part['median_s'])} · {human_percent(part['share'])}", 8.5
            ticks.append((y, PART_NAMES[name]))
            if name in before:
                at, edges = [before[name]] * 2, [y - 0.14, y + 0.14]
                axes.plot(at, edges, color=INK, linewidth=1.6, solid_capstyle="butt")
        else:
            axes.barh(y, value, height=0.10, **_faint(name))
            note, size = human_time(value), 7.0
            ticks.append((y, SUB_ROW_NAMES[row]))
        # The number belongs to the bar; it gives way only to a tick that it would be drawn over.
        tick = before.get(name, 0.0) if row is None else 0.0
        _label(axes, tick if value < tick < value + _NOTE_WIDTH * limit else value, y, note, size)
        y -= height / 2
    axes.set_ylim(y - 0.05, 0.05)
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks])
    for label, (_, row, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontsize(9 if row is None else 7)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        "median time per round [s]" + (f"; upright tick: {overhead['baseline']}" if overhead else "")
    )
    return figure


def _draw_rounds(report: Mapping[str, Any]) -> Figure:
    """Every round's duration, stacked from its components on the critical path; below, what was emulated."""
    rounds = report["rounds"]
    strips = _changing(rounds)
    figure, axes = _figure(3.9) if not strips else _figure_with_strips(3.9, rounds, strips)
    numbers = [one["round"] for one in rounds]
    below = [0.0] * len(rounds)
    used = [name for name in report["components"] if any(one["components"][name] for one in rounds)]
    for name in [*used, "residual"]:
        values = [
            (one["residual_s"] if name == "residual" else one["components"][name]) or 0.0 for one in rounds
        ]
        style = _bar_style(name)
        if len(rounds) > 60:
            style["linewidth"] = 0.2 if name in _PALE else 0
        axes.bar(numbers, values, bottom=below, width=0.82, label=PART_NAMES[name], **style)
        below = [low + value for low, value in zip(below, values, strict=True)]
    if withheld := [one for one in rounds if one.get("withheld")]:
        style = {"facecolor": "none", "edgecolor": INK, "hatch": "////", "linewidth": 0.6}
        durations = [one["duration_s"] for one in withheld]
        axes.bar([one["round"] for one in withheld], durations, width=0.82, label="withheld", **style)
        below = [max(top, one["duration_s"]) for top, one in zip(below, rounds, strict=True)]
    for one, top in zip(rounds, below, strict=True):
        if not one["counted"]:
            side = "left" if len(rounds) > 20 else "center"
            why = "withheld" if one.get("withheld") else "left out"
            axes.text(one["round"], top, why, ha=side, va="bottom", fontsize=7, style="italic")
    figure.axes[-1].set_xlabel("round")
    axes.set_ylabel("duration [s]")
    axes.set_xlim(min(numbers) - 0.7, max(numbers) + 0.7)
    axes.set_ylim(0, 1.08 * max(below) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5
    )
    return figure


def _changing(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What changed over the run: the delay of a schedule, and its loss and rate where they differ."""
    met = [span for one in rounds for span in one.get("conditions", ())]
    values = {key: {span[key] for span in met} for key in _STRIPS}
    return [key for key in _STRIPS if met and (key == "delay_ms" or len(values[key]) > 1)]


def _figure_with_strips(
    height_in: float, rounds: Sequence[Mapping[str, Any]], strips: Sequence[str]
) -> tuple[Figure, Axes]:
    """A figure with a strip for each of these values below it, every round's time within its bar."""
    figure = Figure(figsize=(_WIDTH_IN, height_in + 0.62 * len(strips)), layout="constrained")
    axes, *below = figure.subplots(
        1 + len(strips), 1, sharex=True, height_ratios=[height_in, *[0.6] * len(strips)]
    )
    for strip, key in zip(below, strips, strict=True):
        for one in rounds:
            left, width = one["round"] - 0.41, 0.82
            for span in one.get("conditions", ()):
                if span[key] is None:
                    continue
                begin, end = (span[edge] / (one["duration_s"] or 1) for edge in ("from_s", "to_s"))
                strip.fill_between(
                    [left + width * begin, left + width * end],
                    [span[key]] * 2,
                    color=COLOURS["propagation" if key == "delay_ms" else "transmission"],
                    linewidth=0,
                )
        strip.set_ylim(bottom=0)
        strip.set_ylabel(_STRIPS[key], rotation=0, ha="right", va="center", fontsize=7.5)
        strip.tick_params(labelsize=7)
    return figure, axes


def _draw_overhead(report: Mapping[str, Any]) -> Figure:
    """Difference of mean time a round against the baseline, with its interval, per component."""
    overhead = report["overhead"]
    rows = [(name, PART_NAMES[name], overhead["components"][name]) for name in shown_components(report)]
    rows += [
        ("residual", PART_NAMES["residual"], overhead["residual"]),
        ("", "whole round", overhead["duration"]),
    ]
    figure, axes = _figure(0.8 + 0.27 * len(rows))
    axes.axvline(0, color=INK, linewidth=0.6)
    edges = [0.0]
    for y, (name, _, entry) in enumerate(rows):
        colour = COLOURS.get(name, INK)
        low, high = entry["ci95"] or (entry["delta_s"], entry["delta_s"])
        axes.barh(y, high - low, left=low, height=0.26, **_faint(name))
        axes.plot(
            entry["delta_s"], y, "o", markersize=6, color=colour, markeredgecolor=INK, markeredgewidth=0.6
        )
        _label(axes, max(high, entry["delta_s"], 0), y, human_time(entry["delta_s"], signed=True), 8.5)
        edges += [low, high, entry["delta_s"]]
    span = (max(edges) - min(edges)) or 1
    axes.set_xlim(min(edges) - 0.04 * span, max(edges) + 0.16 * span)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [label for _, label, _ in rows])
    axes.tick_params(axis="y", length=0)
    interval = "" if overhead["duration"]["ci95"] is None else ", with 95 % interval"
    axes.set_xlabel(f"mean time per round more than {overhead['baseline']} [s]{interval}")
    return figure


def _draw_clients(report: Mapping[str, Any]) -> Figure:
    """Client x round: who ended the server's wait, and how much slack the others had."""
    rounds = report["rounds"]
    clients = sorted({row["client"] for one in rounds for row in one["clients"]}, key=_by_number)
    figure, axes = _figure(1.25 + 0.36 * max(len(clients), 1))
    for x, one in enumerate(rounds):
        for row in one["clients"]:
            _draw_cell(
                axes, x, clients.index(row["client"]), one, row, numbered=len(rounds) <= _NUMBERED_ROUNDS
            )
    axes.set_xlim(-0.5, len(rounds) - 0.5)
    axes.set_ylim(max(len(clients), 1) - 0.5, -0.5)
    step = max(1, len(rounds) // 20)
    axes.set_xticks(range(0, len(rounds), step), [str(one["round"]) for one in rounds[::step]])
    axes.set_yticks(range(len(clients)), clients)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("round")
    handles = [Patch(facecolor="#000000", edgecolor=INK, label="critical")]
    least = 0.0
    for most, shade in _SLACK_SHADES:
        label = f"over {least:.0%}" if most == float("inf") else f"{least:.0%} – {most:.0%}"
        handles.append(
            Patch(facecolor=shade, edgecolor="#7d8894", linewidth=0.4, label=label.replace("%", " %"))
        )
        least = most
    axes.legend(
        handles=handles,
        title="slack, part of the round",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.36 if len(clients) < 4 else -0.24),
        ncols=len(handles),
        frameon=False,
        fontsize=7.5,
        title_fontsize=7.5,
        handlelength=1.2,
    )
    return figure


def _draw_cell(
    axes: Axes, x: int, y: int, one: Mapping[str, Any], row: Mapping[str, Any], *, numbered: bool
) -> None:
    part = row["slack_s"] / one["duration_s"] if one["duration_s"] else 0.0
    fill = "#000000" if row["critical"] else next(shade for most, shade in _SLACK_SHADES if part <= most)
    edge: dict[str, Any] = {"edgecolor": "#ffffff", "linewidth": 0.4}
    # Not add_patch, which looks for new limits of the axes each time: they are known.
    axes.add_artist(Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, facecolor=fill, **edge))
    if row["arrival_s"] is None:
        text = "never" if numbered else "×"
    elif row["critical"]:
        text = ("tie" if one["tie"] else "critical") if numbered else ("≈" if one["tie"] else "●")
    else:
        text = human_time(row["slack_s"]) if numbered else ""
    if not text:
        return
    light = fill in ("#000000", _SLACK_SHADES[0][1])
    weight = "bold" if row["critical"] else "normal"
    colour = "#ffffff" if light else "#000000"
    axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour, weight=weight)


def _by_number(client: str) -> tuple[str, int]:
    stem, _, number = client.rpartition("-")
    return (stem, int(number)) if number.isdigit() else (client, -1)
