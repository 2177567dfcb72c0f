"""Counted rounds of saved runs as numbers, read from report.json where it is there, else analysed again.

A *group* is what one argument of a command names: a run, or a directory of runs (repetitions). Only
rounds that the report counts enter: warm ones whose breakdown is not withheld. Seconds in report.json
are integer nanoseconds with nine digits, so they are read back exactly. Of a directory of runs those during
which others used the machine are left out, unless all are such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.ledger.model import COMPONENTS
from analysis.report.wording import plural
from analysis.results.summaries import REPORT_FILE, load_summaries, report_of_run, saved_report
from ztprobe.errors import RunDirError

__all__ = ("PARTS", "RunGroup", "Sample", "find_runs", "load_group", "load_report", "sample_of")

PARTS = ("duration", *COMPONENTS, "residual")
_META = "run.json"
_LONGEST_NS = 2**62


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run's counted rounds."""

    path: Path
    experiment: str
    parts_ns: NDArray[np.int64]  # rounds x PARTS
    contended: bool = False  # others used the machine meanwhile, or its memory was short
    cpus: int | None = None  # that it had; None: not known
    offloads: bool | None = None  # of its pods' interfaces, for segmentation; None: not known
    rounds: tuple[int, ...] = ()  # their numbers
    span_unix_s: tuple[float, float] = (0.0, 0.0)  # from the first one's beginning to the last one's end


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs of one experiment that are taken together."""

    path: Path
    experiment: str
    samples: tuple[Sample, ...]
    left_out: int = 0  # further runs, which others spoiled

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
    saved = saved_report(run / REPORT_FILE)
    return report_of_run(run) if saved is None else saved


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
            f"{path}: its {REPORT_FILE} holds times that no round takes; `ztprobe report` writes it anew"
        )
    parts_ns = found_ns.astype(np.int64)
    contended = bool(report["contention"]["run"]["busy"])
    return Sample(
        path=path,
        experiment=report["experiment"],
        parts_ns=parts_ns,
        contended=contended,
        cpus=report["contention"]["run"]["cpus"],
        offloads=report["facts"].get("offloads"),
        rounds=tuple(one["round"] for one in counted),
        span_unix_s=(
            report["started_unix_s"] + counted[0]["start_s"],
            report["started_unix_s"] + counted[-1]["start_s"] + counted[-1]["duration_s"],
        ),
    )


def load_group(path: Path) -> RunGroup:
    """What one argument names. :raises RunDirError: no run, or runs of several experiments."""
    runs = find_runs(path)
    samples = tuple(sample_of(one, run) for one, run in zip(load_summaries(runs), runs, strict=True))
    names = sorted({sample.experiment for sample in samples})
    if len(names) > 1:
        raise RunDirError(f"{path}: holds runs of {_listed(names)}; name one directory for each experiment")
    # Where all are spoiled they are shown as they are, without an interval.
    kept = tuple(sample for sample in samples if not sample.contended) or samples
    return RunGroup(path=path, experiment=names[0], samples=kept, left_out=len(samples) - len(kept))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
