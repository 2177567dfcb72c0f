"""Predictions held against measured runs: a study's cells, predicted from all cells that a change leads from.

The unit is the run. A cell is predicted by replaying each run of another cell; means over runs are
compared, with Student's interval of the runs' means on both sides where there are two or more. Nothing is
fitted, so that no run is both what a prediction rests on by fitting and what it is held against. The *error
beyond* is what is left of the error once the measured cell's own interval between runs is granted; a cell
of one run has none, and all of the error counts. A check that was kept (records/*.json) says the same later
without the study's runs.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from analysis.results.study_files import STUDY_FILE
from analysis.statistics import LEVEL
from analysis.whatif.change import WhatIfCell, WhatIfChange, cell_of, check_profile
from analysis.whatif.graph import RunWay, way_of
from analysis.whatif.replay import Prediction, predict
from ztprobe.errors import RunDirError, UsageError
from ztprobe.profile.model import load_profile
from ztprobe.rundir.store import load_run

__all__ = ("CHECK_SCHEMA_VERSION", "check_study", "errors_of", "kept_checks", "rows_for", "rows_like")

CHECK_SCHEMA_VERSION = 1
_FACTS = ("kernel", "cores", "versions")


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A cell's runs, without change."""

    ways: tuple[RunWay, ...]
    itself: tuple[Prediction, ...]

    @property
    def means_s(self) -> list[float]:
        """Of the runs' counted rounds."""
        return [float(np.mean(way.counted_ns)) / 1e9 for way in self.ways]


def check_study(path: Path, only: WhatIfChange | None = None) -> dict[str, Any]:
    """Every prediction that a study's cells allow, beside what was measured; plain data with seconds.

    :param only: the one question that is asked; None: all that the cells allow.
    :raises RunDirError: no study stands there, or none of its runs has been made yet.
    """
    cells, about = _measured(path)
    rows = []
    for source, of in cells.items():
        for target, change in _changes(source, cells, only):
            with contextlib.suppress(UsageError):  # a run that does not show what it takes to tell
                rows.append(_row(change, source, of, target, cells[target]))
    return {
        "schema_version": CHECK_SCHEMA_VERSION,
        "study": about.pop("study"),
        "about": about,
        "rows": rows,
        "by_option": _by_option(rows),
        "overall": errors_of(rows) if rows else None,
    }


def _measured(path: Path) -> tuple[dict[WhatIfCell, _Measured], dict[str, Any]]:
    try:
        plan = json.loads((path / STUDY_FILE).read_text())
        # Half of a run whose level was switched is under another one: no cell that a question is about.
        planned = [(cell["name"], cell) for cell in plan["cells"] if "level_switch" not in cell]
        about: dict[str, Any] = {"study": plan["name"], "rounds": plan["rounds"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunDirError(f"{path}: is no study ({STUDY_FILE} is missing or damaged)") from error
    ways: dict[WhatIfCell, list[RunWay]] = defaultdict(list)
    for name, cell in planned:
        for file in sorted((path / "runs" / name).glob("r*/run.json")):
            run = load_run(file.parent)
            about |= {key: run.meta[key] for key in _FACTS if key in run.meta}
            control = cell.get("congestion_control", "cubic")
            key = cell_of(cell["experiment"], cell["clients"], cell["reconnect"], control, cell.get("fl", {}))
            way = way_of(run)
            about |= {"offloads": way.offloads}
            ways[key].append(way)
    if not ways:
        raise RunDirError(f"{path}: none of the study's runs is there yet")
    every = [way for of in ways.values() for way in of]
    # Runs that others spoiled are left out where there are others; where there is none, rows say so.
    ways.update({key: [way for way in of if way.contended is not True] or of for key, of in ways.items()})
    about |= {"runs": len(every), "contended_runs": sum(way.contended is True for way in every)}
    as_it_was = WhatIfChange()
    cells = {
        cell: _Measured(ways=tuple(of), itself=tuple(predict(way, as_it_was) for way in of))
        for cell, of in ways.items()
    }
    return cells, about


def _changes(
    source: WhatIfCell, cells: Mapping[WhatIfCell, _Measured], only: WhatIfChange | None
) -> Iterator[tuple[WhatIfCell, WhatIfChange]]:
    """Which of the other cells can be predicted from one, and by which question."""
    for target in cells:
        change = _between(source, target)
        if change is None or (only is not None and change.words != only.words):
            continue
        yield target, change


def _between(source: WhatIfCell, target: WhatIfCell) -> WhatIfChange | None:
    """What makes one cell of another; None: nothing that can be asked for."""
    added_level = target.level & ~source.level
    if source == target or added_level or target.clients != source.clients:
        return None
    if target.options != source.options:
        return None
    if source.reconnect and not target.reconnect:
        return None
    without = {name for name, bit in (("policy", 1), ("mtls", 2)) if source.level & ~target.level & bit}
    profile = None
    if target.profile != source.profile:
        if target.profile == "net0":
            without.add("profile")
        else:
            try:
                profile = check_profile(load_profile(target.profile))
            except UsageError:
                return None
    control = target.congestion_control if target.congestion_control != source.congestion_control else None
    try:
        return WhatIfChange(
            without=frozenset(without),
            profile=profile,
            reconnect=target.reconnect and not source.reconnect,
            congestion_control=control,
        )
    except UsageError:  # a congestion control of which no rules are known
        return None


def _row(
    change: WhatIfChange, source: WhatIfCell, of: _Measured, target: WhatIfCell, measured: _Measured
) -> dict[str, Any]:
    predicted = [predict(way, change) for way in of.ways]
    predicted_s, measured_s = [one.mean_s for one in predicted], measured.means_s
    mean_s, truth_s = float(np.mean(predicted_s)), float(np.mean(measured_s))
    interval = _interval(measured_s)
    beyond_s = max(0.0, abs(mean_s - truth_s) - ((interval[1] - interval[0]) / 2 if interval else 0.0))
    parts = predicted[0].components_s
    return {
        "options": " ".join(change.words),
        "source": source.name,
        "target": target.name,
        "profile": source.profile,
        "reconnect": source.reconnect,
        "congestion_control": source.congestion_control,
        "runs": [len(of.ways), len(measured.ways)],
        "contended": any(way.contended is True for way in (*of.ways, *measured.ways)),
        "predicted_s": round(mean_s, 9),
        "predicted_ci95": _rounded(_interval(predicted_s) or _of_rounds(predicted)),
        "measured_s": round(truth_s, 9),
        "measured_ci95": _rounded(interval),
        "error": round((mean_s - truth_s) / truth_s, 6),
        "error_beyond": round(beyond_s / truth_s, 6),
        # predicted minus measured, by component: what it gets wrong
        "components": {
            name: round(
                float(
                    np.mean([one.components_s[name] for one in predicted])
                    - np.mean([one.components_s[name] for one in measured.itself])
                ),
                9,
            )
            for name in parts
        },
    }


def _interval(values_s: Sequence[float]) -> tuple[float, float] | None:
    """Student's, of the runs' means; None: a single run."""
    from scipy import stats  # 0.5 s to import

    if len(values_s) < 2:
        return None
    reach_s = float(stats.t.ppf((1 + LEVEL) / 2, len(values_s) - 1)) * float(stats.sem(values_s))
    mean_s = float(np.mean(values_s))
    return mean_s - reach_s, mean_s + reach_s


def _of_rounds(predicted: Sequence[Prediction]) -> tuple[float, float] | None:
    return predicted[0].interval_s if len(predicted) == 1 else None


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(edge, 9) for edge in interval]


def _by_option(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"options": options} | errors_of([row for row in rows if row["options"] == options])
        for options in dict.fromkeys(row["options"] for row in rows)
    ]


def errors_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far off a check's rows are, one or more, as shares of the measured round."""
    errors = [abs(row["error"]) for row in rows]
    beyond = [row["error_beyond"] for row in rows]
    return {
        "predictions": len(errors),
        "mean_error": round(float(np.mean(errors)), 6),
        "largest_error": round(max(errors), 6),
        "mean_error_beyond": round(float(np.mean(beyond)), 6),
        "p95_error_beyond": round(float(np.percentile(beyond, 95)), 6),
    }


def kept_checks() -> dict[str, dict[str, Any]]:
    """The checks that come with ztprobe: study -> what `check_study` said of it.

    :raises RunDirError: one is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    records = resources.files("analysis.whatif").joinpath("records")
    if not records.is_dir():
        return found
    for file in sorted(records.iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".json"):
            continue
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["schema_version"] == CHECK_SCHEMA_VERSION:
                found[file.name.removesuffix(".json")] = record
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunDirError(f"{file}: is damaged") from error
    return found


def rows_for(check: Mapping[str, Any], change: WhatIfChange, cell: WhatIfCell) -> list[dict[str, Any]]:
    """The rows of a check that say how far a question about a run of this cell may be off."""
    asked = {
        "options": " ".join(change.words),
        "source": cell.name,
        "profile": cell.profile,
        "reconnect": cell.reconnect,
        "congestion_control": cell.congestion_control,
    }
    return rows_like(check, asked)


def rows_like(check: Mapping[str, Any], asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a check that say how far a prediction is off that stands in such a row.

    The same question under the same profile, with connections and windows of the same kind; of the same cell
    alone, where the check has it. What others used the machine for is no check: such runs took what they took
    for another reason.
    """
    kind = ("options", "profile", "reconnect", "congestion_control")
    rows = [
        row for row in check["rows"] if all(row[key] == asked[key] for key in kind) and not row["contended"]
    ]
    same = [row for row in rows if row["source"] == asked["source"]]
    return same or rows
