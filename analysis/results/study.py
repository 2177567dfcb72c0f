"""What a study's runs say together: success, medians and p99 by network and level, overhead by part.

Runs are grouped by network profile and level over data distributions, seeds and repetitions, as the
published tables are. Rounds of one run are alike, so an interval of a quantile resamples whole runs (a
cluster bootstrap, 1000 resamples); with one run in a group there is none. p99 needs `statistics`' number
of rounds, and its interval 367: below that even a distribution-free one would reach beyond the largest
value. Overhead against the group without profile and level is a comparison of runs (`comparison`). A run
during which others used the machine is counted, and left out of everything that is told of times.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import statistics
from analysis.report.wording import plural
from analysis.results.comparison import compare
from analysis.results.quantiles import MIN_ROUNDS_FOR_P99_INTERVAL, quantile_interval_ns
from analysis.results.samples import RunGroup, sample_of
from analysis.results.slack import ClientSlack, slack_of_group, slack_of_run
from analysis.results.study_effects import effects_of
from analysis.results.study_files import (
    failed_attempts,
    option_words,
    read_commit,
    read_node,
    read_plan,
    runtime_of,
)
from analysis.results.study_outcomes import convergence_of, outcomes_of
from analysis.results.summaries import load_summaries
from ztprobe.errors import RunDirError

__all__ = (
    "STUDY_REPORT_SCHEMA_VERSION",
    "report_of_cells",
    "study_cells",
    "study_report",
)

STUDY_REPORT_SCHEMA_VERSION = 1  # of study-report.json, as study-report.schema.json has it
_FACTORS = ("profile", "level", "distribution", "seed", "clients")
# Of a cell: what its runs hold, which is not told one by one.
_OF_RUNS = ("samples", "slack", "conditions", "curves")


def study_report(path: Path) -> dict[str, Any]:
    """The tables of a study's directory, as plain data with seconds.

    :raises RunDirError: no study stands there, or none of its runs has been made yet.
    """
    return report_of_cells(path, study_cells(path))


def study_cells(path: Path) -> list[dict[str, Any]]:
    """A study's cells with what their runs hold.

    :raises RunDirError: no study stands there, or none of its runs has been made yet.
    """
    plan = read_plan(path)
    runs = {
        cell["name"]: sorted(file.parent for file in (path / "runs" / cell["name"]).glob("r*/run.json"))
        for cell in plan["cells"]
    }
    every = [run for of in runs.values() for run in of]
    reports = dict(zip(every, load_summaries(every), strict=True))
    _refuse_mixed(reports, runtime_of(plan))
    cells = [
        _cell(path, cell, plan["repetitions"], {run: reports[run] for run in runs[cell["name"]]})
        for cell in plan["cells"]
    ]
    if not any(cell["samples"] for cell in cells):
        raise RunDirError(f"{path}: none of the study's runs is there yet")
    return cells


def _refuse_mixed(reports: Mapping[Path, Mapping[str, Any]], runtime: str) -> None:
    """:raises RunDirError: a run was made by another runtime than the study's."""
    for run, report in reports.items():
        if report["runtime"] != runtime:
            raise RunDirError(
                f"{run}: was made by the runtime {report['runtime']}, and the study's is {runtime}: times of"
                " two runtimes do not go together; take it out of there"
            )


def report_of_cells(path: Path, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As `study_report`, of cells that `study_cells` has read."""
    plan = read_plan(path)
    nodes = {node for cell in cells for node in cell["nodes"]}
    cells = [_quiet(cell) for cell in cells]
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell["group"]].append(cell)
    reports = {name: _group(path, name, members) for name, members in groups.items()}
    samples = {name: tuple(s for one in members for s in one["samples"]) for name, members in groups.items()}
    reference = next((n for n in samples if n.startswith("net0-sec0") and samples[n]), None)
    if reference is not None:
        sides = {
            name: RunGroup(path=path, experiment=name, samples=of, left_out=reports[name]["contended"])
            for name, of in samples.items()
        }
        for name, report in reports.items():
            if name != reference and samples[name]:
                report["overhead"] = dict(compare([sides[reference], sides[name]])["groups"][0])
    return {
        "schema_version": STUDY_REPORT_SCHEMA_VERSION,
        "study": plan["name"],
        "rounds_planned": plan["rounds"],
        "runtime": runtime_of(plan),
        "nodes": sorted(nodes),
        "reference": reference,
        "groups": list(reports.values()),
        "cells": [
            {key: value for key, value in cell.items() if key not in (*_OF_RUNS, "nodes")} for cell in cells
        ],
        "effects": effects_of(cells),
        "completion": _completion(cells),
        "outcomes": outcomes_of(cells),
        "convergence": convergence_of(cells),
        "failures": dict(Counter(one["class"] for cell in cells for one in cell["failures"])),
    }


def _cell(
    path: Path, cell: Mapping[str, Any], repetitions: int, reports: Mapping[Path, Mapping[str, Any]]
) -> dict[str, Any]:
    name, experiment = cell["name"], cell["experiment"]
    samples, accuracies, targets_s = [], [], []
    slack: list[ClientSlack] = []
    conditions: list[dict[str, Any]] = []
    curves = []
    for run, report in reports.items():
        samples.append(sample_of(report, run))
        slack.append(slack_of_run(report))
        conditions.append(_conditions(run, report))
        curves.append(
            {one["round"]: one["accuracy"] for one in report["rounds"] if one["accuracy"] is not None}
        )
        accuracies.append(report["accuracy"]["final"])
        targets_s.append(report["accuracy"]["time_to_target_s"])
    control = cell.get("congestion_control", "cubic")  # studies of before have none
    switch = cell.get("level_switch", "none")
    rest = "".join(
        [
            "" if cell["clients"] == 5 else f"-c{cell['clients']}",
            "-reconnect" if cell["reconnect"] else "",
            "" if control == "cubic" else f"-{control}",
            "" if switch == "none" else f"-to-{switch.replace('@', '-')}",
            *(f"-{words}" for words in option_words(cell.get("fl", {}))),
        ]
    )
    return {
        "name": name,
        "group": f"{experiment['profile']}-sec{experiment['level']}{rest}",
        "variant": rest.lstrip("-"),  # what else tells its group from others
        "profile": experiment["profile"],
        "level": experiment["level"],
        "distribution": experiment["distribution"],
        "seed": experiment["seed"],
        "clients": cell["clients"],
        "reconnect": cell["reconnect"],
        "congestion_control": control,
        "level_switch": switch,
        "fl": dict(cell.get("fl", {})),
        "planned": repetitions,
        "complete": len(samples),
        "contended": sum(sample.contended for sample in samples),  # of these: others used the machine
        "failures": failed_attempts(path, name),
        "accuracy": accuracies,
        "time_to_target_s": targets_s,
        "samples": tuple(samples),
        "slack": tuple(slack),
        "conditions": tuple(conditions),  # of each run
        "curves": tuple(curves),  # of each run: round -> accuracy
        "nodes": {node for run in reports if (node := read_node(run)) is not None},
    }


def _conditions(run: Path, report: Mapping[str, Any]) -> dict[str, str]:
    """What a run was made on, and when, in words."""
    started = datetime.fromtimestamp(report["started_unix_s"], UTC)
    machine = report["contention"]["run"]
    model = f", {machine['cpu_model']}" if machine["cpu_model"] else ""
    return {
        "kernel": report["kernel"],
        "backend": report["emulation"]["backend"] or "none",
        "machine": f"{plural(machine['cpus'], 'CPU')}{model}",
        "commit": read_commit(run),
        "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
    }


def _quiet(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The cell with what its runs hold, without those that others spoiled: counted, and not averaged in."""
    kept = [not sample.contended for sample in cell["samples"]]
    of_runs = (*_OF_RUNS, "accuracy", "time_to_target_s")
    return {**cell} | {name: list(itertools.compress(cell[name], kept)) for name in of_runs}


def _completion(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs by each factor's values, for the factors that vary."""
    rows = []
    options = sorted({name for cell in cells for name in cell.get("fl", {})})
    told = [(name, [cell[name] for cell in cells]) for name in _FACTORS]
    told += [(option, [cell.get("fl", {}).get(option, "not given") for cell in cells]) for option in options]
    for factor, values in told:
        distinct = list(dict.fromkeys(values))
        for value in distinct if len(distinct) > 1 else ():
            members = [cell for cell, its in zip(cells, values, strict=True) if its == value]
            rows.append(
                {
                    "factor": factor,
                    "value": str(value),
                    "complete": sum(cell["complete"] for cell in members),
                    "planned": sum(cell["planned"] for cell in members),
                    "failed_attempts": sum(len(cell["failures"]) for cell in members),
                }
            )
    return rows


def _group(path: Path, name: str, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    samples = [sample for one in members for sample in one["samples"]]
    rounds_ns = [sample.parts_ns[:, 0] for sample in samples]
    together = np.concatenate(rounds_ns) if rounds_ns else np.array([], dtype=np.int64)
    complete = sum(one["complete"] for one in members)
    reached = [one for member in members for one in member["time_to_target_s"]]
    return {
        "name": name,
        "profile": members[0]["profile"],
        "level": members[0]["level"],
        "variant": members[0]["variant"],
        "planned": sum(one["planned"] for one in members),
        "complete": complete,
        "contended": sum(one["contended"] for one in members),
        "attempts": complete + sum(len(one["failures"]) for one in members),
        "rounds": len(together),
        "durations_s": [_seconds(float(duration_ns)) for duration_ns in np.sort(together)],
        "median_s": _seconds(statistics.median_ns(list(together))),
        "median_ci95": _interval(rounds_ns, 50),
        "p99_s": _seconds(statistics.p99_ns(list(together))),
        "p99_ci95": _interval(rounds_ns, 99) if len(together) >= MIN_ROUNDS_FOR_P99_INTERVAL else None,
        "time_to_target_s": _seconds(
            statistics.median_ns([round(s * 1e9) for s in reached if s is not None])
        ),
        "reached_target": sum(one is not None for one in reached),
        "slack": slack_of_group([run for one in members for run in one["slack"]]),
        "overhead": None,
    }


def _interval(rounds_ns: Sequence[NDArray[np.int64]], percent: int) -> list[float | None] | None:
    found_ns = quantile_interval_ns(rounds_ns, percent)
    return None if found_ns is None else [_seconds(edge_ns) for edge_ns in found_ns]


def _seconds(value_ns: float | None) -> float | None:
    return None if value_ns is None else round(value_ns / 1e9, 9)
