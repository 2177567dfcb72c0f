"""One question about a run: its prediction, and the measured runs that say how far it may be off.

A question that no measured runs check is refused, however plausible its answer would be; and so is one whose
check says that such answers are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.report.wording import human_percent, listed, plural
from analysis.whatif.answered import is_answered, mean_error
from analysis.whatif.change import WhatIfCell, WhatIfChange, cell_of
from analysis.whatif.check import check_study, kept_checks, rows_for
from analysis.whatif.graph import way_of
from analysis.whatif.refusals import refuse_untold
from analysis.whatif.replay import predict
from ztprobe.errors import UsageError
from ztprobe.rundir.store import load_run

__all__ = ("answer", "checks_of")


def answer(run: Path, change: WhatIfChange, check: str | None) -> dict[str, Any]:
    """What rounds of a run would take on average after a change, as plain data with seconds.

    :param check: a study's directory, or the name of a check that comes with ztprobe; None: any of those.
    :raises RunDirError: the run or the study cannot be read.
    :raises UsageError: the run has nothing of what is to be taken away, or nothing measured checks it.
    """
    if "polling" in change.without:
        raise UsageError(
            "--without polling: no measured runs with and without it are at hand to check it; what polling"
            f" costs as it is, ztprobe report {run} says (poll wait)"
        )
    way = way_of(load_run(run))
    cell = cell_of(way.experiment, way.clients, way.reconnect, way.congestion_control)
    target = change.target(cell)
    refuse_untold(way, change)
    checks = checks_of(change, cell, target, check)
    return {
        "run": str(run),
        "options": " ".join(change.words),
        "cell": cell.name,
        "target": target.name,
        "recorded": predict(way, WhatIfChange()).as_dict(),
        "predicted": predict(way, change).as_dict(),
        "left_out": way.left_out,
        "offloads": way.offloads,
        "checks": checks,
    }


def checks_of(
    change: WhatIfChange, cell: WhatIfCell, target: WhatIfCell, check: str | None
) -> list[dict[str, Any]]:
    """The measured runs that say how far off answers to a question are.

    :raises UsageError: there are none, and the line says which there are; or they say that answers are wrong.
    """
    found = _checks(change, check)
    fitting = [
        {"study": one["study"], "target": target.name, "offloads": one["about"]["offloads"], "rows": rows}
        for one in found
        if (rows := rows_for(one, change, cell))
    ]
    if not fitting:
        raise UsageError(_refusal(change, cell, check, found))
    rows = [row for one in fitting for row in one["rows"]]
    if not is_answered(rows):
        name = fitting[0]["study"] if check is None else check
        raise UsageError(
            f"{' '.join(change.words)}: is not answered, as measured runs under {cell.profile} show that"
            f" answers are wrong: off by {human_percent(mean_error(rows))} on average of"
            f" {plural(len(rows), 'prediction')} in {listed([one['study'] for one in fitting])};"
            f" ztprobe whatif --check {name} shows each"
        )
    return fitting


def _checks(change: WhatIfChange, check: str | None) -> Sequence[Mapping[str, Any]]:
    if check is not None and Path(check).is_dir():
        return [check_study(Path(check), only=change)]
    kept = kept_checks()
    if check is None:
        return list(kept.values())
    if check not in kept:
        known = ", ".join(kept) or "none"
        raise UsageError(f"--check {check}: is neither a study's directory nor a kept check ({known})")
    return [kept[check]]


def _refusal(
    change: WhatIfChange, cell: WhatIfCell, check: str | None, found: Sequence[Mapping[str, Any]]
) -> str:
    options = " ".join(change.words)
    asked = f"{options}: no measured runs under {cell.profile} check it"
    if any(row["options"] == options and row["contended"] for one in found for row in one["rows"]):
        return f"{asked} that had the machine to themselves; make the study again when it is quiet"
    if check is not None:
        return f"{asked} in {check}; it takes runs with and without, so name another study with --check"
    known = sorted({row["options"] for one in found for row in one["rows"] if row["profile"] == cell.profile})
    there = f"those that come with ztprobe check {', '.join(known)}" if known else "none come with ztprobe"
    how = "--check STUDY (ztprobe sweep whatif-check makes one)"
    return f"{asked} ({there}); name a study with such runs: {how}"
