"""Counted rounds of saved runs as numbers, read from report.json where it is there, else analysed again.

A *group* is what one argument of a command names: a run, or a directory of runs (repetitions). Only
rounds that the report counts enter: warm ones whose breakdown is not withheld. Seconds in report.json
are integer nanoseconds with nine digits, so they are read back exactly.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.ledger.model import COMPONENTS
from analysis.report.report import REPORT_SCHEMA_VERSION, build_report
from analysis.report.wording import plural
from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import RunDirError

__all__ = ("PARTS", "RunGroup", "Sample", "find_runs", "load_group", "load_report", "sample_of")

PARTS = ("duration", *COMPONENTS, "residual")
_META, _REPORT = "run.json", "report.json"
_LONGEST_NS = 2**62
_MOST_BYTES = 256 << 20  # a report of 500 rounds and 200 clients has some 100 MB


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run's counted rounds."""

    path: Path
    experiment: str
    parts_ns: NDArray[np.int64]  # rounds x PARTS
    contended: bool = False  # others used the machine meanwhile, or its memory was short
    rounds: tuple[int, ...] = ()  # their numbers


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs of one experiment that are taken together."""

    path: Path
    experiment: str
    samples: tuple[Sample, ...]

    @property
    def rounds(self) -> int:
        """Counted rounds of all runs."""
        return sum(len(sample.parts_ns) for sample in self.samples)

    @property
    def contended(self) -> int:
        """Runs during which the machine was not quiet."""
        return sum(sample.contended for sample in self.samples)

    @property
    def run_means_ns(self) -> NDArray[np.float64]:
        """Mean nanoseconds a round: runs x PARTS."""
        return np.array([sample.parts_ns.sum(axis=0) / len(sample.parts_ns) for sample in self.samples])


def find_runs(path: Path) -> list[Path]:
    """The run directories that a path names: itself, or those right inside it, by name.

    :raises RunDirError: there is none.
    """
    if (path / _META).is_file():
        return [path]
    runs = sorted(meta.parent for meta in path.glob(f"*/{_META}")) if path.is_dir() else []
    if not runs:
        raise RunDirError(f"{path}: is no run directory (no {_META}), and none stands in it")
    return runs


def load_report(run: Path) -> dict[str, Any]:
    """A run's report.json, or what it would be.

    :raises RunDirError: the run cannot be analysed.
    """
    if (saved := _saved_report(run / _REPORT)) is not None:
        return saved
    from analysis.load import load_analysed

    analysed = load_analysed(run)
    return build_report(analysed.run, analysed.ledger, analysed.baseline)


def _saved_report(file: Path) -> dict[str, Any] | None:
    """None: not there, damaged, of another version, or no report: the raw run decides."""
    try:
        report = parse_json(read_text(file, _MOST_BYTES))
    except DocumentError:
        return None
    if not isinstance(report, dict) or report.get("schema_version") != REPORT_SCHEMA_VERSION:
        return None
    return report if next(_schema().iter_errors(report), None) is None else None


@functools.cache
def _schema() -> Any:
    import jsonschema  # 0.2 s to import

    text = (resources.files("analysis.report") / "report.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def sample_of(report: Mapping[str, Any], path: Path) -> Sample:
    """The counted rounds of one report. :raises RunDirError: it counts none."""
    counted = [one for one in report["rounds"] if one["counted"]]
    if not counted:
        raise RunDirError(f"{path}: none of its {plural(len(report['rounds']), 'round')} counts")
    rows = [
        (one["duration_s"], *(one["components"][name] for name in COMPONENTS), one["residual_s"])
        for one in counted
    ]
    found_ns = np.rint(np.array(rows, dtype=np.float64) * 1e9)
    if not (np.abs(found_ns) < _LONGEST_NS).all():
        raise RunDirError(
            f"{path}: its {_REPORT} holds times that no round takes; `ztprobe report` writes it anew"
        )
    parts_ns = found_ns.astype(np.int64)
    contended = bool(report["contention"]["run"]["busy"])
    return Sample(
        path=path,
        experiment=report["experiment"],
        parts_ns=parts_ns,
        contended=contended,
        rounds=tuple(one["round"] for one in counted),
    )


def load_group(path: Path) -> RunGroup:
    """What one argument names. :raises RunDirError: no run, or runs of several experiments."""
    samples = tuple(sample_of(load_report(run), run) for run in find_runs(path))
    names = sorted({sample.experiment for sample in samples})
    if len(names) > 1:
        raise RunDirError(f"{path}: holds runs of {_listed(names)}; name one directory for each experiment")
    return RunGroup(path=path, experiment=names[0], samples=samples)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
