"""What `ztprobe limits` found, as text in at most 100 columns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.ledger.model import COMPONENTS
from analysis.report.text_report import WIDTH
from analysis.report.wording import NOTHING, PART_NAMES, human_time, plural

__all__ = ("print_limits",)

_LARGEST = 3


def print_limits(report: Mapping[str, Any], stream: IO[str] | None = None) -> None:
    """Every try, then the threshold, with where the time went and what broke on its two sides."""
    console = Console(file=stream or sys.stdout, width=WIDTH, highlight=False)
    rounds = plural(report["rounds"], "round")
    head = f"{report['experiment']}, {plural(report['clients'], 'client')}, {rounds} of at most"
    head += f" {report['round_deadline_s']:g} s: where does it stop working?"
    with console.capture() as printed:
        console.print(Text(head, style="bold"))
        console.print(_tries(report))
        for line in _verdict(report):
            console.print(Text(line))
    console.file.write(printed.get())


def _tries(report: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(report["vary"])
    table.add_column("seed", justify="right")
    table.add_column("outcome")
    table.add_column("rounds", justify="right")
    table.add_column("a round", justify="right")
    table.add_column("largest parts, or why", overflow="fold")
    for one in report["tries"]:
        table.add_row(
            _value(report, one["value"]),
            str(one["seed"]),
            one["outcome"],
            f"{len(one['rounds'])} of {report['rounds']}",
            human_time(one.get("duration_s")),
            _parts(one) if one["outcome"] == "works" else _why(one),
        )
    return table


def _verdict(report: Mapping[str, Any]) -> list[str]:
    works, fails, vary = report["works"], report["fails"], report["vary"]
    if works is None:
        lines = [f"It does not work at {_value(report, fails)} of {vary}: begin where it does (--from)."]
    elif fails is None:
        lines = [f"It still works at {_value(report, works)} of {vary}: look further (--to)."]
    else:
        lines = [f"It works at {_value(report, works)} and fails at {_value(report, fails)} of {vary}."]
    for value in (works, fails):
        tries = [one for one in report["tries"] if one["value"] == value and value is not None]
        if len(tries) > 1:
            good = sum(one["outcome"] == "works" for one in tries)
            lines.append(f"At {_value(report, value)} {good} of {plural(len(tries), 'run')} worked.")
    broken = [one for one in report["tries"] if one["value"] == fails and one["outcome"] != "works"]
    for one in broken[:1]:
        lines.append(f"What breaks first: {_why(one)}")
        lines += [f"  its rounds until then: {_parts(one)}"] if one["rounds"] else []
        if one["outcome"] == "not in force":
            lines.append("  (ztprobe could not prove the network or a control there: its limit, not yours.)")
        lines += [f"  `ztprobe diagnose` says more of {one['run']}"] if one["run"] else []
    return lines


def _value(report: Mapping[str, Any], value: float) -> str:
    if report["vary"] == "clients-missing":
        return f"{value:g} of {report['clients']}"
    return f"{value:g} {report['unit']}"


def _parts(one: Mapping[str, Any]) -> str:
    parts: Mapping[str, float] = one["components"]
    largest: Sequence[str] = sorted(COMPONENTS, key=lambda name: -parts[name])[:_LARGEST]
    return ", ".join(f"{PART_NAMES[name]} {human_time(parts[name])}" for name in largest if parts[name] > 0)


def _why(one: Mapping[str, Any]) -> str:
    if one["cause"] is not None:
        return str(one["cause"]["summary"])
    return str(one["reason"] or NOTHING)
