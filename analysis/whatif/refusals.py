"""What a recorded run cannot tell, however plausible an answer would be: questions that are refused."""

from __future__ import annotations

from analysis.whatif.change import WhatIfChange, cell_of
from analysis.whatif.graph import RunWay
from ztprobe.errors import UsageError

__all__ = ("refuse_untold",)

_SHORT_WAY_NS = 1_000_000  # a few questions are no more than noise


def refuse_untold(run: RunWay, change: WhatIfChange) -> None:
    """:raises UsageError: the run has nothing of what is to be taken away, or cannot tell."""
    if not change.words:
        return
    change.target(cell_of(run.experiment, run.clients, run.reconnect, run.congestion_control))
    if run.has_rate and change.one_way_ns is not None:
        raise UsageError(
            f"{run.path}: its profile limits the rate, so it does not show how fast its path is without one"
        )
    if change.reconnect and not run.setup_ns:
        raise UsageError(f"--reconnect: {run.path} does not show how its connections were set up")
    was_ns = max(up_ns for _down_ns, up_ns in run.one_way_ns.values())
    one_way_ns = was_ns if change.one_way_ns is None else change.one_way_ns
    _refuse_unseen_names(run, change, one_way_ns)
    _refuse_unseen_windows(run, change, one_way_ns)


def _refuse_unseen_names(run: RunWay, change: WhatIfChange, one_way_ns: int) -> None:
    """Sidecars connect without asking; what their applications would ask for themselves is not seen."""
    if "mtls" not in change.without or run.questions or not (run.reconnect or change.reconnect):
        return
    if one_way_ns > _SHORT_WAY_NS:
        raise UsageError(
            f"--without mtls: {run.path}: its sidecars know the server's address, so it does not show what a"
            " new connection asks for names without them, and every question takes this path's delay"
        )


def _refuse_unseen_windows(run: RunWay, change: WhatIfChange, one_way_ns: int) -> None:
    """The rules for windows and pacing (`analysis.whatif.transport`) are those of a path of fixed delay."""
    asked = " ".join(change.words)
    by_rules = change.congestion_control is not None or (change.reconnect and not run.first)
    if by_rules and change.one_way_ns is None and run.varies:
        raise UsageError(
            f"{asked}: {run.path}: its path's delay varies or loses packets, and how other windows answer"
            " that it does not show"
        )
    control = change.congestion_control or run.congestion_control
    is_other = change.congestion_control is not None or change.one_way_ns is not None
    if control == "bbr" and is_other and one_way_ns <= _SHORT_WAY_NS:
        raise UsageError(
            f"{asked}: bbr without a delay sends as fast as it has seen the other side's CPUs take data, and"
            f" {run.path} does not show how fast that is"
        )
