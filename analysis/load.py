"""From a saved run to what the report is built from: the run, its ledger and its baseline's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.evidence.node_clocks import aligned
from analysis.ledger.model import Ledger
from analysis.rounds.round_source import settled
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import BASELINE_DIR, Run, load_run

__all__ = ("Analysed", "load_analysed")


@dataclass(frozen=True, kw_only=True)
class Analysed:
    """A run with its ledger, and the baseline that was measured with it, if any."""

    run: Run
    ledger: Ledger
    baseline: tuple[Run, Ledger] | None


def load_analysed(run_dir: Path) -> Analysed:
    """Load ``run_dir`` and, where it has one, the baseline inside it, and build their ledgers.

    :raises RunDirError: either is incomplete, damaged or of a newer schema.
    """
    run = settled(aligned(load_run(run_dir)))
    baseline = aligned(load_run(run_dir / BASELINE_DIR)) if (run_dir / BASELINE_DIR).exists() else None
    return Analysed(
        run=run,
        ledger=_ledger(run),
        baseline=None if baseline is None else (baseline, _ledger(baseline)),
    )


def _ledger(run: Run) -> Ledger:
    from analysis.flows.choice import build_ledger_of_attached
    from analysis.flows.ledger import is_flow_run
    from analysis.ledger.ledger import build_ledger

    if "failed" in run.meta:
        raise RunDirError(
            f"{run.path}: the run failed ({run.meta['failed']['reason']}); "
            f"`ztprobe diagnose {run.path}` says why"
        )
    try:
        ledger = build_ledger_of_attached(run) if is_flow_run(run) else build_ledger(run)
    except (KeyError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        first = (what.splitlines() or ["no reason given"])[0]
        raise RunDirError(f"{run.path}: the recorded events do not fit together: {first}") from error
    if not ledger.rounds:
        raise RunDirError(f"{run.path}: holds no complete round, so there is nothing to analyse")
    return ledger
