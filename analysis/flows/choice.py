"""Which of the two ledgers tells a run that was attached to.

Where messages go through a hub or a process is started for each, only `analysis.flows` can. Where server and
clients speak with each other directly, `analysis.ledger` knows more (sidecars, handshakes, policies, what
held a sender back) as long as a message is one run of bytes and is seen at both ends, which the first ones of
a client that came meanwhile are not. Which it is, the rounds tell: the ledger that leaves more of them
unexplained does not fit.
"""

from __future__ import annotations

import dataclasses

from analysis.flows.ledger import build_flow_ledger
from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import Ledger
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run

__all__ = ("build_ledger_of_attached",)


def build_ledger_of_attached(run: Run) -> Ledger:
    """The ledger of a run that was attached to.

    :raises RunDirError: the run has no complete round.
    :raises ValueError: nobody was seen to exchange a message.
    """
    try:
        flows = build_flow_ledger(run)
    except ValueError:
        return build_ledger(run)
    facts = flows.flow
    if facts is None or facts.is_indirect or facts.one_sided or facts.pollers or _somebody_came(run):
        return flows
    try:
        direct = build_ledger(run)
    except (KeyError, ValueError, RunDirError):
        return flows
    told = [one for one in direct.rounds if one.critical_client is not None]
    in_one_piece = bool(told) and all(one.exchanges == 1.0 for one in told)
    if not in_one_piece or _residual_ns(direct) > _residual_ns(flows):
        return flows
    return dataclasses.replace(direct, flow=facts)


def _somebody_came(run: Run) -> bool:
    """As far as it was written down when participants were seen first."""
    attachment = run.meta["attachment"]
    return any(
        one["role"] == "client" and one.get("first_seen_ns", 0) > attachment["attached_ns"]
        for one in attachment["participants"]
    )


def _residual_ns(ledger: Ledger) -> int:
    return sum(one.residual_ns for one in ledger.rounds)
