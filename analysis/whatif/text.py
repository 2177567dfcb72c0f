"""A prediction and a check as text in at most 100 columns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.report.text_report import WIDTH
from analysis.report.wording import NOTHING, PART_NAMES, human_percent, human_time, listed, plural
from analysis.results.comparison_text import human_change
from analysis.whatif.answered import mean_error

__all__ = ("print_check", "print_prediction", "wrong_parts")

_WRONG = 0.02  # of the measured round: a component's error worth naming
_NAMED = 2
_OTHER_PACKETS = {  # by whether this run's pods had offloads
    True: "  (packets were smaller there: its pods' interfaces had no segmentation offloads)",
    False: "  (packets were larger there: its pods' interfaces had segmentation offloads)",
}


def print_prediction(found: Mapping[str, Any], stream: IO[str] | None = None) -> None:
    """Print what rounds would take beside what they took, and how far such predictions have been off."""
    console = Console(file=stream or sys.stdout, width=WIDTH, highlight=False)
    recorded, predicted = found["recorded"], found["predicted"]
    with console.capture() as printed:
        console.print(Text(f"{found['cell']} {found['options']}, as {found['target']}", style="bold"))
        table = _table("mean a round", "recorded", "predicted", "difference")
        for name, after_s in predicted["components"].items():
            before_s = recorded["components"][name]
            if before_s or after_s:
                row = (human_time(before_s), human_time(after_s), human_time(after_s - before_s, signed=True))
                table.add_row(PART_NAMES[name], *row)
        whole = (recorded["mean_s"], predicted["mean_s"])
        difference = human_time(whole[1] - whole[0], signed=True)
        table.add_row("round", *map(human_time, whole), difference, style="bold")
        console.print(table)
        rounds = plural(predicted["rounds"], "round")
        if predicted["rests_on_first"]:
            console.print(
                "without an interval: new connections take what those of the first round took, and how others"
                " would differ one round does not say"
            )
        elif predicted["ci95"] is None:
            console.print(f"without an interval: {rounds} replayed, and it takes 7")
        else:
            interval = " … ".join(human_time(edge) for edge in predicted["ci95"])
            console.print(f"95 % interval {interval}, over {rounds} of this run: another run may differ more")
        decides = [f"{client} {count}" for client, count in predicted["critical_clients"].items()]
        console.print(f"who decides: {', '.join(decides)} of {rounds}")
        if found["left_out"]:
            console.print(f"left out: {plural(found['left_out'], 'round')}, not seen to the end")
        for check in found["checks"]:
            console.print(Text(_check_line(check)))
            if check["offloads"] != found["offloads"]:
                console.print(Text(_OTHER_PACKETS[found["offloads"]]))
    console.file.write(printed.get())


def _check_line(check: Mapping[str, Any]) -> str:
    rows = check["rows"]
    largest = max(abs(row["error"]) for row in rows)
    words = (
        f"checked on {check['study']}: {plural(len(rows), 'prediction')} off by"
        f" {human_percent(mean_error(rows))} on average, {human_percent(largest)} at most"
    )
    same = [row for row in rows if row["target"] == check["target"]]
    if not same:
        return words
    measured = "; ".join(
        f"{row['target']} was measured: {human_time(row['measured_s'])}{_between(row['measured_ci95'])}"
        for row in same[:1]
    )
    return f"{words}; {measured}"


def print_check(check: Mapping[str, Any], stream: IO[str] | None = None) -> None:
    """Print every prediction beside its measured cell, and how far each kind of question is off."""
    console = Console(file=stream or sys.stdout, width=WIDTH, highlight=False)
    with console.capture() as printed:
        console.print(Text(f"{check['study']}: predictions beside measured cells", style="bold"))
        for options in dict.fromkeys(row["options"] for row in check["rows"]):
            console.print(Text(f"\n{options}"))
            console.print(_rows([row for row in check["rows"] if row["options"] == options]))
        console.print(Text("\nby question (error beyond: the cell's own interval between runs granted)"))
        table = _table("", "predictions", "mean error", "largest", "mean beyond", "95th percentile")
        for one in (*check["by_option"], {"options": "all"} | check["overall"]):
            table.add_row(
                one["options"],
                str(one["predictions"]),
                *(
                    human_percent(one[key])
                    for key in ("mean_error", "largest_error", "mean_error_beyond", "p95_error_beyond")
                ),
            )
        console.print(table)
        if answered := check.get("answered"):
            console.print(Text(_answered_line(answered)))
        if contended := check["about"]["contended_runs"]:
            console.print(
                f"others used the machine during {contended} of {plural(check['about']['runs'], 'run')}:"
                " they are left out where their cell has others, and check nothing where it has none"
            )
    console.file.write(printed.get())


def _answered_line(answered: Mapping[str, Any]) -> str:
    others, errors = listed(answered["by"]), answered["errors"]
    if not answered["by"]:
        return "no other measured runs say which of these would be answered"
    if errors is None:
        return f"by what {others} showed, none of these questions would be answered"
    return (
        f"by what {others} showed, {errors['predictions']} of these predictions would be told: they are off"
        f" by {human_percent(errors['mean_error'])} on average,"
        f" {human_percent(errors['largest_error'])} at most; beyond the interval by"
        f" {human_percent(errors['mean_error_beyond'])} on average,"
        f" {human_percent(errors['p95_error_beyond'])} at the 95th percentile"
    )


def _rows(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("from", "to", "predicted", "measured", "95 % interval", "error", "mostly in")
    for row in rows:
        interval = row["measured_ci95"]
        table.add_row(
            row["source"].partition(" ")[0],
            row["target"].partition(" ")[0],
            human_time(row["predicted_s"]),
            human_time(row["measured_s"]),
            NOTHING if interval is None else " … ".join(map(human_time, interval)),
            human_change(row["error"]),
            wrong_parts(row) or NOTHING,
        )
    return table


def wrong_parts(row: Mapping[str, Any]) -> str:
    """The components in which a prediction is most off, with by how much; empty: in none worth naming."""
    parts = sorted(row["components"], key=lambda name: -abs(row["components"][name]))[:_NAMED]
    return ", ".join(
        f"{PART_NAMES[name]} {human_time(row['components'][name], signed=True)}"
        for name in parts
        if abs(row["components"][name]) >= _WRONG * row["measured_s"]
    )


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({' … '.join(map(human_time, interval))} between runs)"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table
