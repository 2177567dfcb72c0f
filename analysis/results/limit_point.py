"""One try of `ztprobe limits`: whether it worked, where its rounds' time went, and what broke it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from analysis.causes.diagnosis import diagnose_run
from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import COMPONENTS, RoundLedger
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run, load_run

__all__ = ("point_of",)


def point_of(run_dir: Path) -> dict[str, Any]:
    """``outcome`` (works, fails), ``reason``, ``cause``, ``rounds`` (how many ended), ``duration_s`` and
    ``components`` (their means over these rounds in seconds; None where no round ended).

    :raises RunDirError: the run is damaged.
    """
    run = load_run(run_dir)
    failed = run.meta.get("failed")
    rounds = _rounds_of(run)
    point: dict[str, Any] = {
        "outcome": "works" if failed is None else "fails",
        "reason": None if failed is None else failed["reason"],
        "cause": None,
        "rounds": [one.round for one in rounds],
        "duration_s": _mean_s([one.duration_ns for one in rounds]),
        "residual_s": _mean_s([one.residual_ns for one in rounds]),
        "components": {name: _mean_s([one.components_ns[name] for one in rounds]) for name in COMPONENTS},
    }
    if failed is not None and (causes := diagnose_run(run)["causes"]):
        best = causes[0]
        point["cause"] = {name: best[name] for name in ("id", "class", "title", "summary", "confidence")}
    return point


def _rounds_of(run: Run) -> tuple[RoundLedger, ...]:
    """Those that ended, of a run that failed too: nothing in its ledger depends on how it went on."""
    whole = dataclasses.replace(run, meta={key: run.meta[key] for key in run.meta if key != "failed"})
    try:
        return tuple(build_ledger(whole).rounds)
    except (RunDirError, KeyError, ValueError, IndexError):  # it did not come so far
        return ()


def _mean_s(values_ns: list[int]) -> float | None:
    return float(round(np.mean(values_ns) / 1e9, 9)) if values_ns else None
