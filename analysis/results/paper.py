"""A run's overhead for a paper: a LaTeX table (booktabs) and figures as wide as a column, 3.5 inches."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from analysis.ledger.model import COMPONENTS
from analysis.report.figures import COLOURS, STYLE
from analysis.report.wording import PART_NAMES, human_percent, human_time, shown_components
from ztprobe.printable import printable_tree

__all__ = ("COLUMN_IN", "breakdown_pdf", "latex_table")

COLUMN_IN = 3.5
_UNSAFE = {letter: f"\\{letter}" for letter in "&%_#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "…": "to",
    "–": "--",
    "µ": r"\textmu{}",
}


def latex_table(report: Mapping[str, Any]) -> str:
    """The components' medians, shares and overheads as a ``table`` environment (package booktabs)."""
    report = printable_tree(report)
    overhead = report["overhead"]
    names = _shown(report)
    lines = [
        "% needs \\usepackage{booktabs,textcomp}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_escaped(_caption(report))}}}",
        f"\\begin{{tabular}}{{lrr{'rr' if overhead else ''}}}",
        "\\toprule",
        " & ".join(["Component", "Median", "Share", *(["Overhead", "95\\,\\% interval"] if overhead else [])])
        + " \\\\",
        "\\midrule",
    ]
    for name in names:
        summary = report["residual"] if name == "residual" else report["components"][name]
        cells = [PART_NAMES[name], human_time(summary["median_s"]), human_percent(summary["share"])]
        if overhead:
            entry = overhead["residual"] if name == "residual" else overhead["components"][name]
            cells += _difference(entry)
        lines.append(" & ".join(map(_escaped, cells)) + " \\\\")
    cells = ["round", human_time(report["duration"]["median_s"]), human_percent(1.0)]
    cells += _difference(overhead["duration"]) if overhead else []
    lines += ["\\midrule", " & ".join(map(_escaped, cells)) + " \\\\", "\\bottomrule", "\\end{tabular}"]
    return "\n".join([*lines, "\\end{table}", ""])


def _shown(report: Mapping[str, Any]) -> list[str]:
    # In the ledger's order: JSON has the names sorted.
    shown = set(shown_components(report))
    return [*(name for name in COMPONENTS if name in shown), "residual"]


def _caption(report: Mapping[str, Any]) -> str:
    text = f"{report['experiment']}: {report['rounds_counted']} rounds"
    if report["overhead"]:
        text += f", overhead against {report['overhead']['baseline']} (difference of means)"
    return f"{text}. Linux {report['kernel']}, emulated by {report['emulation']['backend']}."


def _difference(entry: Mapping[str, Any]) -> list[str]:
    interval = entry["ci95"] and " … ".join(human_time(edge, signed=True) for edge in entry["ci95"])
    return [human_time(entry["delta_s"], signed=True), interval or "–"]


def _escaped(text: str) -> str:
    return "".join(_UNSAFE.get(letter, letter) for letter in text)


def breakdown_pdf(report: Mapping[str, Any]) -> bytes:
    """Mean seconds a round by component, stacked: the run and, where there is one, its baseline."""
    report = printable_tree(report)
    bars = {report["experiment"]: report["components"] | {"residual": report["residual"]}}
    if report["overhead"]:
        baseline = report["overhead"]
        bars = {
            baseline["baseline"]: baseline["baseline_components"]
            | {"residual": baseline["baseline_residual"]}
        } | bars
    names = _shown(report)
    with matplotlib.rc_context(STYLE | {"font.size": 7.0, "pdf.fonttype": 42}):
        figure = Figure(figsize=(COLUMN_IN, 0.9 + 0.35 * len(bars)), layout="constrained")
        axes = figure.add_subplot()
        for index, parts in enumerate(bars.values()):
            left = 0.0
            for name in names:
                width = parts[name]["mean_s"] or 0.0
                axes.barh(index, width, left=left, color=COLOURS[name], edgecolor="white", linewidth=0.4)
                left += width
        axes.set_yticks(range(len(bars)), list(bars))
        axes.set_xlabel("mean time a round [s]")
        handles = [matplotlib.patches.Patch(color=COLOURS[name], label=PART_NAMES[name]) for name in names]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=6)
        stream = io.BytesIO()
        FigureCanvasPdf(figure).print_pdf(stream, metadata={"CreationDate": None, "ModDate": None})  # type: ignore[no-untyped-call]
    return stream.getvalue()
