"""``trace --repeat``: pairs of baseline and experiment, until there are enough of them.

The unit of what is said is the pair. With a goal for the interval (``--until-ci``) it is looked at after
every pair from the third on, and the first time it is narrow enough ends the study; that a lucky narrow
one may end it early makes such an interval cover a little less often than 95 %, which the record says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.results.comparison import compare
from analysis.results.comparison_text import human_change
from analysis.results.samples import RunGroup, load_report, sample_of
from ztprobe.errors import WorkloadError
from ztprobe.progress import Progress
from ztprobe.rundir.store import dump_json, write_atomically
from ztprobe.study.execution import Tally, open_study, run_block
from ztprobe.study.plan import Study

__all__ = ("COMPARISON_FILE", "run_pairs")

COMPARISON_FILE = "comparison.json"
_LEAST_PAIRS = 3


def run_pairs(study: Study, out: Path, progress: Progress, *, until: float | None = None) -> dict[str, Any]:
    """Run the pairs that are missing, and say what came of all of them.

    :param until: stop when the interval of the relative change is no wider than this to either side.
    :returns: the comparison, also written as comparison.json.
    :raises WorkloadError: no pair is complete.
    """
    tally = Tally(planned=len(study.cells) * study.repetitions)
    comparison: dict[str, Any] | None = None
    with open_study(study, out):
        for repetition in range(1, study.repetitions + 1):
            run_block(study, repetition, out, progress, tally)
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
            raise WorkloadError(f"no pair is complete; what each attempt said is in {out / 'attempts'}")
        write_atomically(out / COMPARISON_FILE, dump_json(comparison))
    return comparison


def _compared(study: Study, out: Path) -> dict[str, Any] | None:
    """All complete pairs; None: there is none."""
    pairs = []
    for repetition in range(1, study.repetitions + 1):
        runs = {planned.cell: out / planned.directory for planned in study.block(repetition)}
        if all((run / "run.json").exists() for run in runs.values()):
            pairs.append(runs)
    if not pairs:
        return None
    groups = []
    for cell in study.cells:
        samples = tuple(sample_of(load_report(pair[cell]), pair[cell]) for pair in pairs)
        groups.append(RunGroup(path=out / "runs" / cell.name, experiment=cell.name, samples=samples))
    return compare(groups, paired=True) | {"pairs": len(pairs), "order_seed": study.order_seed}
