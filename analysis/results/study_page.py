"""study.html and its tables beside it: a study's results, self-contained, from study-report.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.ledger.model import COMPONENTS
from analysis.report.html import inline_svg
from analysis.report.pages import page_environment
from analysis.report.wording import NOTHING, PART_NAMES, human_percent, human_time, plural
from analysis.results.comparison_text import human_change
from analysis.results.effects_tables import effect_rows, effects_frame, interaction_tables, slack_frame
from analysis.results.study import report_of_cells, study_cells
from analysis.results.study_figures import draw_study
from analysis.results.study_files import read_plan
from analysis.results.study_outcomes import completion_frame, outcomes_frame
from analysis.results.study_rounds import ROUNDS_FILE, rounds_parquet, study_rounds
from analysis.results.study_text import runtime_words, study_contention_words
from ztprobe.printable import printable_tree
from ztprobe.rundir.store import dump_json, write_atomically

__all__ = ("render_study", "study_frame", "write_study")


def write_study(path: Path) -> dict[str, Any]:
    """Write study-report.json, study.html, figures/, tables as CSV, Parquet and LaTeX, and counted rounds.

    :returns: the report.
    :raises RunDirError: there is no study, or none of its runs; or it cannot be written.
    """
    cells = study_cells(path)
    report = report_of_cells(path, cells)
    figures = draw_study(report)
    frames = {
        "study": study_frame(report),
        "study-effects": effects_frame(report),
        "study-slack": slack_frame(report),
        "study-outcomes": outcomes_frame(report),
        "study-completion": completion_frame(report),
    }
    write_atomically(path / "study-report.json", dump_json(report))
    write_atomically(path / "study.html", render_study(report, figures).encode())
    for name, frame in frames.items():
        write_atomically(path / f"{name}.csv", frame.to_csv(index=False).encode())
        write_atomically(path / f"{name}.parquet", frame.to_parquet(index=False))
        latex = frame.to_latex(index=False, escape=True, float_format="%.3f", na_rep="--")
        write_atomically(path / f"{name}.tex", latex.encode())
    rounds = study_rounds(read_plan(path), report, cells)
    write_atomically(path / ROUNDS_FILE, rounds_parquet(rounds))
    for name, svg in figures.items():
        write_atomically(path / "figures" / f"{name}.svg", svg.encode())
    return report


def study_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row a group; seconds, counts, and each component's share of the overhead in seconds."""
    rows = []
    for group in report["groups"]:
        median, p99 = group["median_ci95"] or (None, None), group["p99_ci95"] or (None, None)
        row = {
            "group": group["name"],
            "runs": group["complete"],
            "planned": group["planned"],
            "attempts": group["attempts"],
            "rounds": group["rounds"],
            "median_s": group["median_s"],
            "median_low_s": median[0],
            "median_high_s": median[1],
            "p99_s": group["p99_s"],
            "p99_low_s": p99[0],
            "p99_high_s": p99[1],
            "time_to_target_s": group["time_to_target_s"],
        }
        parts = group["overhead"]["parts"] if group["overhead"] else None
        for name in ("duration", *COMPONENTS, "residual"):
            row[f"overhead_{name}_s"] = parts[name]["delta_s"] if parts else None
        rows.append(row)
    frame = pd.DataFrame(rows)
    # Numbers even where no group has one.
    return frame.astype({name: "float64" for name in frame if str(name).endswith("_s")})


def render_study(report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The page as HTML text. ``figures`` are the SVGs that `draw_study` gives for this report."""
    report = printable_tree(report)
    environment = page_environment(Path(__file__).parent / "templates")
    environment.filters |= {
        "time": human_time,
        "percent": human_percent,
        "change": human_change,
        "signed": _signed,
    }
    return environment.get_template("study.html.j2").render(
        s=report,
        first=study_contention_words(report),
        runtime=runtime_words(report),
        figures={name: inline_svg(svg) for name, svg in figures.items()},
        plural=plural,
        interval=_interval,
        largest=_largest,
        effect_rows=effect_rows(report),
        interaction_tables=interaction_tables(report),
        nothing=NOTHING,
    )


def _signed(seconds: float | None) -> str:
    return human_time(seconds, signed=True)


def _interval(edges: list[float] | None, *, signed: bool = False) -> str:
    return NOTHING if edges is None else " … ".join(human_time(edge, signed=signed) for edge in edges)


def _largest(overhead: Mapping[str, Any]) -> str:
    parts = overhead["parts"]
    names = sorted(COMPONENTS, key=lambda name: -abs(parts[name]["delta_s"]))[:3]
    return ", ".join(f"{PART_NAMES[n]} {human_time(parts[n]['delta_s'], signed=True)}" for n in names)
