"""The report as text in at most 100 columns, for a terminal, a pipe or a log.

A function of report.json's content alone. Widths are fixed, so that two runs can be laid
beside each other, and longer sentences break at words under a hanging indent; colour only
repeats what the words say. On a terminal that is narrower, the overhead is a table of its own
below the breakdown, and names of rows are cut.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.causes.diagnosis_text import why_words
from analysis.report.attachment import attachment_lines, set_up_words
from analysis.report.communication_words import client_columns, communication_lines
from analysis.report.contention_words import machine_sentence
from analysis.report.level_switch import switch_lines
from analysis.report.wording import (
    CPU_ROW_NAMES,
    NOTHING,
    PART_NAMES,
    SUB_ROW_NAMES,
    emulation_pairs,
    human_percent,
    human_time,
    interval_words,
    plural,
    schedule_words,
    shown_components,
    shown_sub_rows,
    tls_words,
)
from analysis.report.workload import workload_lines
from ztprobe.printable import printable_tree

__all__ = ("WIDTH", "print_report")

WIDTH = 100
_LABEL = 18
_NARROWEST = 56  # the overhead's columns and a label of 14
_LABEL_COLUMN = 27
_GAP = 2
_TIME_COLUMN, _LEAST_NAME = 7, 14  # of the clients' table
# What falls into few rounds has a median of 0 and a share all the same, so the mean, of which the
# share is, stands between them.
_BREAKDOWN = (("median/round", 12), ("mean/round", 10), ("of mean", 8))
_OVERHEAD = (("overhead", 10), ("95 % interval", 21))


def print_report(
    report: Mapping[str, Any], stream: IO[str] | None = None, *, colour: bool | None = None
) -> None:
    """Print ``report`` to ``stream`` (standard output if None).

    :param colour: None lets the terminal and NO_COLOR decide.
    """
    stream = stream or sys.stdout
    width = _width(stream)
    report = printable_tree(report)
    console = Console(
        file=stream,
        width=width,
        highlight=False,
        markup=False,
        soft_wrap=False,
        force_terminal=colour,
        no_color=None if colour is None else not colour,
    )
    # Written by us: a reader that has gone (`| head`) is the caller's to judge, and rich would exit.
    with console.capture() as printed:
        console.print(_headline(report))
        for number, sentence in enumerate(report["contention"]["said"]):
            _print_line(console, "read this first" if number == 0 else "", sentence, width, style="bold")
        for table in (*_tables(report, width), *_client_tables(report, width)):
            console.print(table)
            console.print()
        for label, sentence in _lines(report):
            _print_line(console, label, sentence, width)
        console.print()
        for line in _wrap(report["diagnosis"], width):
            console.print(Text(line, style="bold"))
        for line in _wrap(why, width) if (why := why_words(report)) else ():
            console.print(Text(line, style="bold"))
    console.file.write(printed.get())


def _width(stream: IO[str]) -> int:
    if not stream.isatty():
        return WIDTH
    return min(WIDTH, max(_NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns))


def _headline(report: Mapping[str, Any]) -> Text:
    counted = report["rounds_counted"]
    text = Text(report["experiment"], style="bold")
    where = "" if "attachment" in report else f" on {report['runtime']}"
    text.append(f"{where}: median of {plural(counted, 'round')}", style="not bold")
    if len(report["rounds"]) > 1:
        text.append(f" (round {report['rounds'][0]['round']} left out)", style="not bold")
    if withheld := report.get("rounds_withheld"):
        text.append(f", breakdown of {plural(withheld, 'round')} withheld", style="bold")
    if report["overhead"]:
        text.append(f", overhead against {report['overhead']['baseline']}", style="not bold")
    return text


def _tables(report: Mapping[str, Any], width: int) -> list[Table]:
    if not report["overhead"]:
        return [_table(report, _BREAKDOWN, width)]
    if width >= _LABEL_COLUMN + sum(size + _GAP for _, size in (*_BREAKDOWN, *_OVERHEAD)):
        return [_table(report, (*_BREAKDOWN, *_OVERHEAD), width)]
    return [_table(report, columns, width) for columns in (_BREAKDOWN, _OVERHEAD)]


def _client_tables(report: Mapping[str, Any], width: int) -> Iterator[Table]:
    """By client of a deployment that ran already, medians; on a narrow terminal what fits."""
    communication = report.get("communication")
    if not communication or not communication["clients"]:
        return
    columns = client_columns(communication)
    sizes = [max(_TIME_COLUMN, len(title)) for _, title in columns]
    while len(columns) > 1 and sum(sizes) + _GAP * len(sizes) > width - _LEAST_NAME:
        columns, sizes = columns[:-1], sizes[:-1]
    left = width - sum(sizes) - _GAP * len(sizes)
    table = Table(box=None, padding=(0, _GAP, 0, 0), show_edge=False, header_style="dim", pad_edge=False)
    table.add_column("median/round, client", width=min(_LABEL_COLUMN, left), no_wrap=True)
    for (_, title), size in zip(columns, sizes, strict=True):
        table.add_column(title, width=size, justify="right", no_wrap=True)
    for client in communication["clients"]:
        table.add_row(client["client"], *(human_time(client[f"{part}_median_s"]) for part, _ in columns))
    yield table


def _table(report: Mapping[str, Any], columns: Sequence[tuple[str, int]], width: int) -> Table:
    overhead = report["overhead"]
    table = Table(box=None, padding=(0, _GAP, 0, 0), show_edge=False, header_style="dim", pad_edge=False)
    left = width - sum(size + _GAP for _, size in columns)
    table.add_column("component", width=min(_LABEL_COLUMN, left), no_wrap=True)
    for title, size in columns:
        table.add_column(title, width=size, justify="right", no_wrap=True)

    def add(label: str, part: Mapping[str, Any], against: Mapping[str, Any] | None, style: str = "") -> None:
        cells = {
            "median/round": human_time(part["median_s"]),
            "mean/round": human_time(part["mean_s"]),
            "of mean": human_percent(part.get("share")),
        }
        if against:
            cells["overhead"] = human_time(against["delta_s"], signed=True)
            cells["95 % interval"] = interval_words(against)
        table.add_row(label, *(cells[title] for title, _ in columns), style=style)

    for name in shown_components(report):
        add(PART_NAMES[name], report["components"][name], overhead and overhead["components"][name])
        for row, part in shown_sub_rows(report, name):
            add(f"  {SUB_ROW_NAMES[row]}", part, overhead and overhead["sub_rows"][name][row], "dim")
    add("residual", report["residual"], overhead and overhead["residual"])
    add("round", {**report["duration"], "share": 1.0}, overhead and overhead["duration"], "bold")
    return table


def _print_line(console: Console, label: str, sentence: str, width: int, *, style: str = "not dim") -> None:
    for number, line in enumerate(_wrap(sentence, width - _LABEL)):
        text = Text(f"{label if number == 0 else '':<{_LABEL}}", style="dim")
        console.print(text.append(line, style=style))


def _wrap(sentence: str, width: int) -> list[str]:
    held = re.sub(r"(?<=\d) (?=(?:s|ms|µs|%|Mbit/s)(?:\W|$))", "\N{NO-BREAK SPACE}", sentence)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(held, width)] or [""]


def _lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and sentence of everything below the table, in order."""
    yield from communication_lines(report.get("communication", {}))
    yield "connection set-up", _setup_sentence(report)
    if report["duration"]["p99_s"] is not None:
        yield "p99 of a round", human_time(report["duration"]["p99_s"])
    yield "residual", f"{human_percent(report['residual']['median_share'])} of a round in the median"
    yield "coverage", f"{100 * report['coverage']:.2f} % of events seen; {_loss_sentence(report['loss'])}"
    if "attachment" in report:
        yield from attachment_lines(report)
        yield "policy, network", "as they are there: ztprobe put none into force, and proved none"
    else:
        yield from _enforcement_lines(report["enforcement"])
        if "level_switch" in report:
            yield from switch_lines(report["level_switch"])
        yield "emulated", _emulation_sentence(report["emulation"])
    yield "training time", _compute_sentence(report["compute_check"])
    yield "measuring cost", _cpu_sentence(report["cpu"])
    if "memory" in report:
        yield "", _memory_sentence(report["memory"])
    yield "foreign CPU time", machine_sentence(report)
    accuracy = report["accuracy"]
    if accuracy["final"] is not None:
        reached = accuracy["time_to_target_s"]
        after = f"after {human_time(reached)}" if reached is not None else "not reached"
        yield (
            "accuracy",
            f"{100 * accuracy['final']:.1f} % at the end; {100 * accuracy['target']:.0f} % {after}",
        )
    yield from workload_lines(report.get("workload", {}))
    if report["overhead"]:
        yield "interval", report["overhead"]["method"]
    for note in report["notes"]:
        yield "note", note


def _setup_sentence(report: Mapping[str, Any]) -> str:
    setup = report["connection_setup"]
    if not setup["clients"]:
        return (set_up_words(report) if "attachment" in report else "") or "none was seen"
    parts = [
        f"{PART_NAMES.get(name, name)} {human_time(part['median_s'])}"
        for name, part in setup["components"].items()
        if part["median_s"]
    ]
    if setup["residual_median_s"]:
        parts.append(f"residual {human_time(setup['residual_median_s'])}")
    words = f"{human_time(setup['median_s'])} before round 1"
    words += f" (median of {plural(len(setup['clients']), 'client')})"
    if setup["amortised_s"] is not None:
        words += f", {human_time(setup['amortised_s'])} for each round served"
    if parts:
        words += ": " + ", ".join(parts)
    tls = sorted({tls_words(one) for one in setup["clients"]} - {""})
    return words + (f"; {' / '.join(tls)}" if tls else "")


def _loss_sentence(loss: Mapping[str, int]) -> str:
    lost = ", ".join(f"{channel.replace('_', ' ')} {count:,}" for channel, count in loss.items() if count)
    return f"lost: {lost}" if lost else "none lost on any channel"


def _enforcement_lines(enforcement: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    controls = {"network_policy": "network policy", "mtls": "mutual TLS", "hardening": "pods and accounts"}
    for key, name in controls.items():
        if (control := enforcement.get(key)) is None:
            continue
        if not control["proofs"]:
            yield name, "expected, but nothing was proven" if control["expected"] else "none, as asked"
            continue
        passed = sum(proof["passed"] for proof in control["proofs"])
        verdict = "proven" if control["proven"] else "NOT proven"
        wanted = "in force" if control["expected"] else "none, as asked"
        yield name, f"{wanted}, {verdict}: {passed} of {len(control['proofs'])} checks passed"
        for proof in control["proofs"]:
            if not proof["passed"]:
                yield "", f"FAILED  {proof['name']}: expected {proof['expected']}, saw {proof['observed']}"


def _emulation_sentence(emulation: Mapping[str, Any]) -> str:
    """Profile, backend, and each requested value beside the measured one."""
    pairs = emulation_pairs(emulation)
    if not pairs:
        return f"{emulation['profile']}: nothing"
    if all(asked == NOTHING for _, asked, _ in pairs):
        return f"{emulation['profile']}: nothing (measured {', '.join(f'{n} {got}' for n, _, got in pairs)})"
    values = ", ".join(
        f"{name} {asked}" + (f" (measured {got})" if got != NOTHING else "") for name, asked, got in pairs
    )
    said = f"{emulation['profile']} by {emulation['backend'] or 'nothing'}: "
    if changes := schedule_words(emulation):
        last = next(c for c in reversed(emulation["schedule"]["changes"]) if c["at_ns"] is not None)
        return f"{said}{changes}; step 1: {values}; in the end step {last['step'] + 1}"
    return said + values


def _compute_sentence(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return "clients logged none to compare the kernel's with"
    verdict = "agrees" if check["within_limit"] else "DOES NOT agree"
    return (
        f"kernel {verdict} with what clients logged: off by {check['median_abs_difference_ms']:.2f} ms "
        f"({check['median_abs_difference_pct']:.2f} %) in the median of {check['pairs']}"
    )


def _memory_sentence(memory: Mapping[str, int]) -> str:
    resident, maps = (f"{memory[name] / 2**20:.0f} MiB" for name in ("resident_bytes", "kernel_maps_bytes"))
    return f"memory of the agent: {resident}, and {maps} of maps in the kernel"


def _cpu_sentence(cpu: Mapping[str, Any]) -> str:
    rows = [
        f"{CPU_ROW_NAMES[name]} {human_time(row['cpu_s'])}"
        + (f" ({human_percent(row['machine_share'])})" if row["machine_share"] is not None else "")
        for name, row in cpu["rows"].items()
        if row["cpu_s"] is not None
    ]
    return f"CPU time (part of the machine): {', '.join(rows)}" if rows else "not recorded"
