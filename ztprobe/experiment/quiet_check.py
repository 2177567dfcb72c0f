"""Before round 1: is the machine the deployment's own, and if not, shall we wait?

A run that begins on a busy machine ends with a report that withholds its intervals
(analysis/contention.py), so it is worth a line before the rounds, or a wait. Judged over the last seconds of
the agent's own record of the machine, with everything up and idle but the clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ztprobe.agent.machine_load import LoadRecord
from ztprobe.progress import Progress

__all__ = ("QUIET_SHARE", "ensure_quiet")

# Foreign CPU time over the machine's; analysis/contention.py holds runs to the same.
QUIET_SHARE = 0.02
_WINDOW_S = 3.0
_POLL_S = 0.25


def ensure_quiet(
    load: LoadRecord, wait_s: float | None, progress: Progress, check: Callable[[], None]
) -> dict[str, Any]:
    """Warn of a busy machine, or wait until it is quiet; then go on in any case.

    :param wait_s: how long to wait at most; None: only warn.
    :param check: called while waiting; raises if the deployment has ended meanwhile.
    :returns: for run.json: the share of foreign CPU time then, and how long was waited.
    """
    begun = time.monotonic()
    share = _share(load, check)
    said = share
    if share >= QUIET_SHARE and wait_s is not None:
        progress.stage("quiet machine", f"foreign CPU time is {_percent(share)}, at most {wait_s:g} s")
        while share >= QUIET_SHARE and time.monotonic() < begun + wait_s:
            time.sleep(_POLL_S)
            check()
            share = _share(load, check)
        progress.done(f"foreign CPU time was {_percent(said)}, is {_percent(share)}")
    waited_s = time.monotonic() - begun
    if share >= QUIET_SHARE:
        who = load.busiest()
        hint = "" if wait_s is not None else "; --wait-for-quiet waits for them"
        progress.note(
            f"warning: {load.where} is busy: other processes use {_percent(share)} of its CPU time"
            f"{f', most of it {who}' if who else ''} (quiet is below {_percent(QUIET_SHARE)}): "
            f"that can pass for overhead{hint}"
        )
    return {"foreign_share_before": round(share, 6), "waited_s": round(waited_s, 3)}


def _share(load: LoadRecord, check: Callable[[], None]) -> float:
    while (share := load.foreign_share(_WINDOW_S)) is None:
        if load.problem is not None:
            return 0.0  # cannot be told, and the report will say so
        time.sleep(_POLL_S)
        check()
    return share


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
