"""A study's tables as text in at most 100 columns."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.ledger.model import COMPONENTS
from analysis.report.text_report import WIDTH
from analysis.report.wording import NOTHING, PART_NAMES, human_time, plural
from analysis.results.comparison_text import human_change, spoiled_words
from analysis.results.effects_tables import interaction_tables
from analysis.results.study_files import LOCAL
from ztprobe.printable import printable_tree

__all__ = ("print_study", "runtime_words", "study_contention_words")

_LARGEST = 3  # components named as the largest parts of an overhead


def print_study(report: Mapping[str, Any], stream: IO[str] | None = None) -> None:
    """Print what came of the runs, and what each group costs more than the reference."""
    report = printable_tree(report)
    console = Console(file=stream or sys.stdout, width=WIDTH, highlight=False)
    complete = sum(group["complete"] for group in report["groups"])
    planned = sum(group["planned"] for group in report["groups"])
    with console.capture() as printed:
        for words in study_contention_words(report):
            console.print(Text(f"read this first: {words}", style="bold"))
        console.print(
            Text(f"{report['study']}: {complete} of {plural(planned, 'run')} complete", style="bold")
        )
        console.print(Text(runtime_words(report)))
        console.print(_times(report))
        for name, count in report["failures"].items():
            console.print(Text(f"failed attempts, {name}: {count}"))
        if report["reference"] is not None:
            console.print(Text(f"\noverhead against {report['reference']}, mean a round", style="bold"))
            console.print(_overheads(report))
        console.print(Text("\nadditive or not", style="bold"))
        for sentence in report["effects"]["said"]:
            console.print(Text(sentence))
        for table in interaction_tables(report):
            if table["changed"] in ("mtls", "level") and table["under"] == "profile":
                console.print(_by_part(table))
    console.file.write(printed.get())


def runtime_words(report: Mapping[str, Any]) -> str:
    """What its runs were made by, and where on a cluster."""
    if report["runtime"] == LOCAL:
        return "runtime: local, network namespaces of one machine"
    nodes = report["nodes"]
    where = f", {'node' if len(nodes) == 1 else 'nodes'} {', '.join(nodes)}" if nodes else ""
    more = "; what differs between nodes is in what differs between runs" if len(nodes) > 1 else ""
    return f"runtime: {report['runtime']}{where}{more}"


def study_contention_words(report: Mapping[str, Any]) -> list[str]:
    """What to say before any number of a study that holds runs on a machine that was not quiet."""
    counts = [(one["name"], one["contended"], one["complete"]) for one in report["groups"]]
    return [
        f"{words} They are left out of every time, overhead and effect below: delete them and start the sweep"
        " again on a quiet machine to have them made anew."
        for words in spoiled_words(counts)
    ]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(columns[0], overflow="fold")  # of long names the end tells them apart
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _times(report: Mapping[str, Any]) -> Table:
    table = _table("", "runs", "attempts", "rounds", "median", "95 % interval", "p99", "to 95 % accuracy")
    for group in report["groups"]:
        table.add_row(
            Text(group["name"]),
            f"{group['complete']} of {group['planned']}",
            str(group["attempts"]),
            str(group["rounds"]),
            human_time(group["median_s"]),
            _interval(group["median_ci95"]),
            human_time(group["p99_s"]),
            human_time(group["time_to_target_s"]),
        )
    return table


def _overheads(report: Mapping[str, Any]) -> Table:
    table = _table("", "difference", "95 % interval", "change", "largest parts")
    for group in report["groups"]:
        if group["overhead"] is None:
            continue
        parts = group["overhead"]["parts"]
        largest = sorted(COMPONENTS, key=lambda name: -abs(parts[name]["delta_s"]))[:_LARGEST]
        table.add_row(
            Text(group["name"]),
            human_time(parts["duration"]["delta_s"], signed=True),
            _interval(parts["duration"]["ci95"], signed=True),
            human_change(parts["duration"]["relative"]),
            ", ".join(f"{PART_NAMES[n]} {human_time(parts[n]['delta_s'], signed=True)}" for n in largest),
        )
    return table


def _by_part(found: Mapping[str, Any]) -> Table:
    table = _table("", found["alone"], "95 % interval", found["together"], "95 % interval")
    for row in found["rows"]:
        table.add_row(*row.values(), style="bold" if row["part"] == "round" else "")
    return table


def _interval(edges: list[float] | None, *, signed: bool = False) -> str:
    return NOTHING if edges is None else " … ".join(human_time(edge, signed=signed) for edge in edges)
