"""``trace --repeat``: pairs of baseline and experiment, until there are enough of them.

The unit of what is said is the pair. A run during which others used the machine is made anew as in any study
(`execution`); where it stays so, its pair is left out of what is said. With a goal for the interval
(``--until-ci``) it is looked at after every quiet pair from the third on, and the first time it is narrow
enough ends the study; that a lucky narrow one may end it early makes such an interval cover a little less
often than 95 %, which the record says.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.report.wording import plural
from analysis.results.comparison import compare
from analysis.results.comparison_text import human_change
from analysis.results.samples import RunGroup, Sample, load_report, sample_of
from analysis.results.study_files import CONTENTION, failed_attempts
from ztprobe.errors import WorkloadError
from ztprobe.progress import Progress
from ztprobe.rundir.store import dump_json, write_atomically
from ztprobe.study.duet import run_duet
from ztprobe.study.execution import Tally, open_study, run_block
from ztprobe.study.plan import Study

__all__ = ("COMPARISON_FILE", "run_pairs")

COMPARISON_FILE = "comparison.json"
_LEAST_PAIRS = 3


def run_pairs(study: Study, out: Path, progress: Progress, *, until: float | None = None) -> dict[str, Any]:
    """Run the pairs that are missing, and say what came of all of them.

    :param until: stop when the interval of the relative change is no wider than this to either side.
    :returns: the comparison, also written as comparison.json.
    :raises WorkloadError: no pair is complete, or none was made on a quiet machine.
    """
    tally = Tally(planned=len(study.cells) * study.repetitions)
    comparison: dict[str, Any] | None = None
    with open_study(study, out):
        for repetition in range(1, study.repetitions + 1):
            (run_duet if study.duet else run_block)(study, repetition, out, progress, tally)
            comparison = _compared(study, out)
            if comparison is None:
                continue
            duration = comparison["groups"][0]["parts"]["duration"]
            interval = duration["relative_ci95"]
            if until is None or interval is None or comparison["pairs"] < _LEAST_PAIRS:
                continue
            width = (interval[1] - interval[0]) / 2 / (1 + duration["relative"])
            progress.note(
                f"{comparison['pairs']} pairs: {human_change(duration['relative'])} ± {width * 100:.1f} %"
            )
            if width <= until:
                comparison["stopped_at"] = until
                break
        if comparison is None:
            raise WorkloadError(_why_none(study, out))
        write_atomically(out / COMPARISON_FILE, dump_json(comparison))
    return comparison


def _compared(study: Study, out: Path) -> dict[str, Any] | None:
    """All complete pairs of quiet runs; None: there is none."""
    pairs = _pairs(study, out)
    quiet = [pair for pair in pairs if not any(sample.contended for sample in pair)]
    if not quiet:
        return None
    left_out = len(pairs) - len(quiet)
    groups = [
        RunGroup(path=out / "runs" / cell.name, experiment=cell.name, samples=samples, left_out=left_out)
        for cell, samples in zip(study.cells, zip(*quiet, strict=True), strict=True)
    ]
    return compare(groups, paired=True) | {
        "pairs": len(quiet),
        "left_out_pairs": left_out,
        "repeated_runs": sum(
            one["class"] == CONTENTION for cell in study.cells for one in failed_attempts(out, cell.name)
        ),
        "order_seed": study.order_seed,
        **({"duet": {"together_share": _together(quiet)}} if study.duet else {}),
    }


def _pairs(study: Study, out: Path) -> list[tuple[Sample, ...]]:
    """Of each complete pair a sample of each cell, in the cells' order."""
    pairs = []
    for repetition in range(1, study.repetitions + 1):
        runs = {planned.cell: out / planned.directory for planned in study.block(repetition)}
        if all((run / "run.json").exists() for run in runs.values()):
            pairs.append(tuple(sample_of(load_report(runs[cell]), runs[cell]) for cell in study.cells))
    return pairs


def _together(pairs: Sequence[tuple[Sample, ...]]) -> float:
    """The part of the longer run's counted rounds in which the other's were going on; of pairs the median."""
    shares = []
    for pair in pairs:
        begins, ends = zip(*(sample.span_unix_s for sample in pair), strict=True)
        longest_s = max(end - begin for begin, end in zip(begins, ends, strict=True))
        shares.append(max(0.0, min(ends) - max(begins)) / longest_s if longest_s else 0.0)
    return round(statistics.median(shares), 9)


def _why_none(study: Study, out: Path) -> str:
    if not (pairs := _pairs(study, out)):
        return f"no pair is complete; what each attempt said is in {out / 'attempts'}"
    directories = " ".join(str(out / "runs" / cell.name) for cell in study.cells)
    return (
        f"others used the machine during {plural(len(pairs), 'pair')} of {len(pairs)}, so there is no"
        " overhead to be told: start again on a quiet machine, with another --out (`ztprobe compare"
        f" {directories}` shows what was seen)"
    )
