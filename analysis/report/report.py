"""report.json: everything that the table and the page show, as plain data.

`build_report` is a pure function of saved runs and their ledgers; table, figures and page
are functions of its result alone, so each of them works for any report.json. Seconds are
integer nanoseconds divided once, with nine digits; nothing depends on when, where or by
whom a run is analysed, so analysing it again gives the same bytes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import contention, statistics
from analysis.evidence.node_clocks import NODE_CLOCKS
from analysis.ledger.coverage import COVERAGE_FLOOR
from analysis.ledger.model import COMPONENTS, SUB_ROWS, ClientRound, Ledger, RoundLedger
from analysis.report import sections
from analysis.report.advice import diagnose
from analysis.report.attachment import attachment_of
from analysis.report.communication import communication_csv, communication_of
from analysis.report.conditions import (
    conditions_of,
    late_in_round,
    late_spans,
    round_conditions,
    rounds_under,
)
from analysis.report.contention_words import first_sentences
from analysis.report.level_switch import add_level_switch
from analysis.report.wording import plural
from analysis.report.workload import workload_of
from ztprobe.errors import RunDirError
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.schema import LOSS_CHANNELS
from ztprobe.rundir.store import Run, dump_json, write_atomically

__all__ = ("REPORT_SCHEMA_VERSION", "build_report", "read_report", "write_report")


def read_report(run_dir: Path, *, coverage_floor: float = COVERAGE_FLOOR) -> dict[str, Any]:
    """Analyse the saved run in ``run_dir`` (and its ``baseline/``, if there is one) and write nothing.

    :param coverage_floor: rounds of which a smaller share (0..1) of events was seen get no breakdown.
    :raises RunDirError: the run is incomplete, damaged or of a newer schema.
    """
    from analysis.load import load_analysed

    analysed = load_analysed(run_dir)
    report = build_report(analysed.run, analysed.ledger, analysed.baseline, coverage_floor=coverage_floor)
    return report | _why(analysed.run)


def _why(run: Run) -> dict[str, Any]:
    """``troubles`` and ``causes``, where something went wrong or a filter dropped what clients sent."""
    from analysis.causes.diagnosis import diagnose_run

    found = diagnose_run(run)
    if not found["troubles"] and not found["dropped_by_filter"]:
        return {}
    return {name: found[name] for name in ("troubles", "causes", "dropped_by_filter")}


_MEANS = "Overhead is the difference of mean time a round, so that components and residual add up"

# Of report.json, as report.schema.json has it; a run directory has its own.
REPORT_SCHEMA_VERSION = 1


def write_report(
    run_dir: Path, *, out: Path | None = None, coverage_floor: float = COVERAGE_FLOOR
) -> dict[str, Any]:
    """Analyse the saved run in ``run_dir`` as `read_report` does, and write
    ``figures/*.svg``, ``report.html``, ``report.json`` and, of a deployment that ran already,
    ``communication.csv`` into ``out``, or into the run itself.
    Returns report.json's content.

    :param coverage_floor: rounds of which a smaller share (0..1) of events was seen get no breakdown.
    :raises RunDirError: the run is incomplete, damaged or of a newer schema, or cannot be written to.
    """
    # It would like a directory in the user's home for fonts, warns where there is none, and needs none.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # matplotlib and jinja2 are for this function alone; the command line should not wait for them.
    from analysis.report.figures import draw_figures
    from analysis.report.html import render_page

    report = read_report(run_dir, coverage_floor=coverage_floor)
    figures = draw_figures(report)
    contents = {f"figures/{name}.svg": svg.encode() for name, svg in figures.items()}
    if "communication" in report:
        contents["communication.csv"] = communication_csv(report["communication"]).encode()
    contents["report.html"] = render_page(report, figures).encode()
    contents["report.json"] = dump_json(report)
    # Only now, so that whatever ends this early (an error, Ctrl-C) leaves what was there before.
    for name, content in contents.items():
        write_atomically((run_dir if out is None else out) / name, content)
    return report


def build_report(
    run: Run,
    ledger: Ledger,
    baseline: tuple[Run, Ledger] | None,
    *,
    coverage_floor: float = COVERAGE_FLOOR,
) -> dict[str, Any]:
    """The report of ``run``: its rounds, their statistics and, against ``baseline``, its overhead.

    :raises RunDirError: a ledger holds no round.
    """
    for one_run, one_ledger in ((run, ledger), *([baseline] if baseline else [])):
        if not one_ledger.rounds:
            raise RunDirError(f"{one_run.path}: holds no complete round, so there is nothing to analyse")
    meta = run.meta
    counted = statistics.counted_rounds(ledger, coverage_floor)
    overhead = _overhead(run, counted, baseline, coverage_floor) if baseline else None
    judged = contention.judge(
        (run, counted),
        (baseline[0], statistics.counted_rounds(baseline[1], coverage_floor)) if baseline else None,
        overhead,
    )
    in_order = sorted(ledger.rounds, key=lambda one: one.start_ns)
    first_ns = in_order[0].start_ns
    report: dict[str, Any] = {
        **_of_run(run),
        "started_unix_s": sections.seconds(Clock.of_run(meta).unix_ns(first_ns)),
        "rounds": [_round(one, first_ns, one in counted, coverage_floor) for one in in_order],
        "rounds_counted": len(counted),
        "rounds_withheld": sum(one.coverage < coverage_floor for one in in_order),
        "coverage_floor": round(coverage_floor, 9),
        # Without a round to break down, the durations are still the server's own.
        "duration": _summary([one.duration_ns for one in counted or statistics.warm_rounds(ledger)]),
        **_parts(counted),
        "exchanges": _median([one.exchanges for one in counted]),
        "critical_clients": dict(sorted(Counter(one.critical_client or "none" for one in counted).items())),
        "connection_setup": sections.connection_setup(ledger.setup, baseline[1].setup if baseline else ()),
        "overhead": None if overhead is None else contention.withhold(overhead, judged, _MEANS),
        "contention": judged,
        "compute_check": sections.compute_check(one for each in counted for one in each.clients),
        "accuracy": sections.accuracy(run, in_order),
        "emulation": meta["emulation"],
        "enforcement": sections.enforcement(meta["enforcement"]),
        "coverage": round(ledger.coverage, 9),
        "loss": dict.fromkeys(LOSS_CHANNELS, 0) | meta["loss"],
        "loss_log": sections.loss_log(meta.get("loss_log", []), first_ns),
        "events_seen": meta.get("events_seen"),
        "probes": meta.get("probes", []),
        "cpu": sections.cpu(meta),
        **sections.memory(meta),
        **attachment_of(run),
        **communication_of(ledger, counted),
        **_clocks(run),
    }
    workload = workload_of(run.rounds)
    if any(workload.values()):
        report["workload"] = workload
    report["contention"]["said"] = first_sentences(report)
    _add_conditions(report, run, in_order)
    add_level_switch(report, run, ledger, counted)
    report["notes"] = sections.notes(run, ledger, report, baseline)
    report["diagnosis"] = diagnose(report)
    return report


def _clocks(run: Run) -> dict[str, Any]:
    """Of runs on several nodes."""
    told = run.meta.get(NODE_CLOCKS, ())
    return {"clocks": [{**one, "drift_ppm": round(one["drift_ppm"], 3)} for one in told]} if told else {}


def _of_run(run: Run) -> dict[str, Any]:
    meta = run.meta
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "experiment": run.name,
        "settings": {key: value for key, value in meta["experiment"].items() if key != "name"},
        "options": meta.get("options", {}),
        "runtime": meta["runtime"],
        "kernel": meta["kernel"],
        "versions": meta["versions"],
        "hooks": meta["hooks"],
        "facts": meta.get("facts", {}),
    }


def _add_conditions(report: dict[str, Any], run: Run, in_order: Sequence[RoundLedger]) -> None:
    """Beside each round, what it took place under: the machine, the schedule, what stood in its way."""
    emulation = run.meta["emulation"]
    machines = contention.machines_of(run)
    conditions, late = conditions_of(run.meta), late_spans(emulation)
    for one, entry in zip(in_order, report["rounds"], strict=True):
        entry["machine"] = contention.of_round(machines, one)
        if conditions.scheduled:
            entry["conditions"] = round_conditions(conditions, one.start_ns, one.duration_ns)
        if (late_ns := late_in_round(late, one)) is not None:
            entry["delay_line_late_s"] = sections.seconds(late_ns)
    for other in emulation.get("others", ()):
        under = set(rounds_under(other, in_order))
        for entry in report["rounds"]:
            if entry["round"] in under:
                entry.setdefault("other_profiles", []).append(other["profile"])


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 9) if len(values) else None


def _round(one: RoundLedger, first_ns: int, counted: bool, floor: float) -> dict[str, Any]:
    withheld = one.coverage < floor
    return {
        "round": one.round,
        "counted": counted,
        "start_s": sections.seconds(one.start_ns - first_ns),
        "duration_s": sections.seconds(one.duration_ns),
        "critical_client": one.critical_client,
        **_of_levels(one, withheld),
        "tie": one.tie,
        "lost_events": one.lost_events,
        "coverage": round(one.coverage, 9),
        "uncertainty_s": sections.seconds(one.uncertainty_ns),
        "withheld": withheld,
        "components": dict.fromkeys(COMPONENTS) if withheld else sections.all_seconds(one.components_ns),
        "residual_s": None if withheld else sections.seconds(one.residual_ns),
        "sub_rows": {}
        if withheld
        else {name: sections.all_seconds(rows) for name, rows in one.sub_rows_ns.items()},
        "exchanges": round(one.exchanges, 9),
        "accuracy": one.accuracy,
        "syn_count": sum(client.syn_count for client in one.clients),
        "retransmissions": sum(client.retransmissions for client in one.clients),
        "needless_retransmissions": sum(client.needless_retransmissions for client in one.clients),
        "clients": [_client(client, one, withheld) for client in one.clients],
    }


def _of_levels(one: RoundLedger, withheld: bool) -> dict[str, Any]:
    """The critical path by level, where there are edge aggregators on it."""
    if not one.critical_through:
        return {}
    levels = [
        {"server": server, "client": client, "components": sections.all_seconds(parts)}
        for server, client, parts in one.levels_ns
    ]
    return {"critical_through": list(one.critical_through), "levels": [] if withheld else levels}


def _client(one: ClientRound, of: RoundLedger, withheld: bool) -> dict[str, Any]:
    return {
        "client": one.client,
        **({"through": list(one.through)} if one.through else {}),
        "critical": one.client == of.critical_client,
        "arrival_s": sections.seconds(one.arrival_ns),
        "slack_s": sections.seconds(one.slack_ns),
        "components": dict.fromkeys(COMPONENTS) if withheld else sections.all_seconds(one.components_ns),
        "compute_kernel_s": sections.seconds(one.compute_kernel_ns),
        "compute_reported_s": sections.seconds(one.compute_reported_ns),
        **({} if one.down_bytes is None else {"down_bytes": one.down_bytes, "up_bytes": one.up_bytes}),
        "syn_count": one.syn_count,
        "retransmissions": one.retransmissions,
        "needless_retransmissions": one.needless_retransmissions,
        # [component, from, to] in seconds from the round's start, without a hole
        "segments": []
        if withheld
        else [
            [piece.component, *(sections.seconds(ns - of.start_ns) for ns in (piece.start_ns, piece.end_ns))]
            for piece in one.segments
        ],
        # [kind, from, until, number] likewise
        "marks": []
        if withheld
        else [
            [
                mark.kind,
                *(sections.seconds(ns - of.start_ns) for ns in (mark.start_ns, mark.end_ns)),
                mark.times,
            ]
            for mark in one.marks
        ],
    }


def _summary(values_ns: Sequence[int], duration_ns: Sequence[int] | None = None) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "median_s": sections.seconds(statistics.median_ns(values_ns)),
        "mean_s": sections.seconds(statistics.mean_ns(values_ns)),
        "p99_s": sections.seconds(statistics.p99_ns(values_ns)),
    }
    if duration_ns is not None:
        part = statistics.share(values_ns, duration_ns)
        summary["share"] = None if part is None else round(part, 9)
    return summary


def _columns(rounds: Sequence[RoundLedger]) -> dict[tuple[str, ...], list[int]]:
    """Every part's nanoseconds, round by round: ("duration",), (component,) or (component, sub-row)."""
    columns: dict[tuple[str, ...], list[int]] = {("duration",): [one.duration_ns for one in rounds]}
    columns |= {(name,): [one.components_ns[name] for one in rounds] for name in COMPONENTS}
    columns["residual",] = [one.residual_ns for one in rounds]
    for name, rows in SUB_ROWS.items():
        for row in rows:
            columns[name, row] = [one.sub_rows_ns.get(name, {}).get(row, 0) for one in rounds]
    return columns


def _parts(rounds: Sequence[RoundLedger]) -> dict[str, Any]:
    columns = _columns(rounds)
    duration_ns = columns["duration",]
    round_shares = [one.residual_ns / one.duration_ns for one in rounds if one.duration_ns]
    return {
        "components": {name: _summary(columns[name,], duration_ns) for name in COMPONENTS},
        "residual": _summary(columns["residual",], duration_ns) | {"median_share": _median(round_shares)},
        "sub_rows": {
            name: {row: _summary(columns[name, row], duration_ns) for row in rows}
            for name, rows in SUB_ROWS.items()
        },
    }


def _overhead(
    run: Run, counted: Sequence[RoundLedger], baseline: tuple[Run, Ledger], coverage_floor: float
) -> dict[str, Any] | None:
    counted_baseline = statistics.counted_rounds(baseline[1], coverage_floor)
    if not counted or not counted_baseline:
        return None
    columns, columns_baseline = _columns(counted), _columns(counted_baseline)
    found = dict(
        zip(
            columns,
            statistics.differences(
                np.array(list(columns.values()), dtype=np.int64).T,
                np.array(list(columns_baseline.values()), dtype=np.int64).T,
            ),
            strict=True,
        )
    )
    uncertain_ns = sum(
        sum(one.uncertainty_ns for one in rounds) / len(rounds) for rounds in (counted, counted_baseline)
    )
    baseline_name = _without_options(run, baseline[0])
    found = {part: one if part == ("duration",) else one.widened(uncertain_ns) for part, one in found.items()}
    entries = {
        part: {
            "delta_s": sections.seconds(difference.delta_ns),
            "ci95": difference.interval_ns and [sections.seconds(edge) for edge in difference.interval_ns],
        }
        for part, difference in found.items()
    }
    return {
        "baseline": baseline_name,
        "baseline_rounds_counted": len(counted_baseline),
        "baseline_duration": _summary(columns_baseline["duration",]),
        "baseline_components": {
            name: _summary(columns_baseline[name,], columns_baseline["duration",]) for name in COMPONENTS
        },
        "baseline_residual": _summary(columns_baseline["residual",], columns_baseline["duration",]),
        "duration": entries["duration",],
        "components": {name: entries[name,] for name in COMPONENTS},
        "residual": entries["residual",],
        "sub_rows": {name: {row: entries[name, row] for row in rows} for name, rows in SUB_ROWS.items()},
        "method": _method(run.name, len(counted), baseline_name, len(counted_baseline), uncertain_ns),
    }


def _without_options(run: Run, baseline: Run) -> str:
    """The baseline's name, and which of the run's workload options it did without."""
    mine, theirs = (one.meta.get("options", {}).get("fl", {}) for one in (run, baseline))
    missing = [
        f"--fl-{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in mine.items()
        if theirs.get(name) != value
    ]
    return f"{baseline.name} without {' '.join(missing)}" if missing else baseline.name


def _method(name: str, rounds: int, baseline: str, rounds_baseline: int, uncertain_ns: float) -> str:
    if min(rounds, rounds_baseline) < statistics.MIN_ROUNDS_FOR_INTERVAL:
        return (
            f"{_MEANS}. No interval: {plural(rounds, 'round')} of {name} and {rounds_baseline} of {baseline} "
            f"count, and it takes {statistics.MIN_ROUNDS_FOR_INTERVAL} of each (round 1 is left out)."
        )
    lost = (
        f"; lost events widen it by {uncertain_ns / 1e6:.3g} ms at each end but for the round's duration"
        if uncertain_ns
        else ""
    )
    lengths = sorted({statistics.block_length(rounds), statistics.block_length(rounds_baseline)})
    return (
        f"{_MEANS}; 95 % interval from a circular block bootstrap over rounds ({statistics.RESAMPLES} "
        f"resamples, blocks of {' and '.join(map(str, lengths))}, widened for short runs), conditional on "
        f"this pair of runs: {rounds} rounds of {name}, {rounds_baseline} of {baseline}{lost}; round 1 is "
        "left out."
    )
