"""From a saved run to what the report is built from: the run, its ledger and its baseline's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from analysis.ledger.model import Ledger
from analysis.rounds.settled import settled
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
    run = settled(load_run(run_dir))
    baseline = load_run(run_dir / BASELINE_DIR) if (run_dir / BASELINE_DIR).exists() else None
    return Analysed(
        run=run,
        ledger=_ledger(run),
        baseline=None if baseline is None else (baseline, _ledger(baseline)),
    )


def _ledger(run: Run) -> Ledger:
    from analysis.flows.ledger import build_flow_ledger, is_flow_run
    from analysis.ledger.ledger import build_ledger

    try:
        ledger = _detailed(run, build_flow_ledger(run)) if is_flow_run(run) else build_ledger(run)
    except (KeyError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        first = (what.splitlines() or ["no reason given"])[0]
        raise RunDirError(f"{run.path}: the recorded events do not fit together: {first}") from error
    if not ledger.rounds:
        raise RunDirError(f"{run.path}: holds no complete round, so there is nothing to analyse")
    return ledger


def _detailed(run: Run, flow: Ledger) -> Ledger:
    """The ledger by messages on the wire where that can tell a deployment's rounds; it says more of them.

    That is where the server sends each client one message a round and gets one back, and nobody polls or
    stands between. Set-up, windows and what was lost are in it, which turns of a connection do not show.
    """
    from analysis.ledger.ledger import build_ledger

    facts = flow.flow
    if facts is None or facts.pollers or facts.one_sided or facts.path != ("server", "client"):
        return flow
    try:
        wire = build_ledger(run)
    except (RunDirError, KeyError, ValueError):
        return flow
    told = [one for one in wire.rounds if one.critical_client is not None]
    residual_ns, flow_residual_ns = (sum(one.residual_ns for one in each.rounds) for each in (wire, flow))
    if not told or any(one.exchanges != 1.0 for one in told) or residual_ns > flow_residual_ns:
        return flow
    return replace(wire, flow=facts)
