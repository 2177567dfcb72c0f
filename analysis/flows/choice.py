"""Which of the two ledgers tells a run that was attached to.

Where messages go through a hub or a process is started for each, only `analysis.flows` can. Where server and
clients speak with each other directly, `analysis.ledger` knows more (sidecars, handshakes, policies, what
held a sender back) as long as a message is one run of bytes. Which it is, the rounds tell: the ledger that
leaves more of them unexplained does not fit.
"""

from __future__ import annotations

import dataclasses

from analysis.flows.ledger import build_flow_ledger
from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import Ledger
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run

__all__ = ("build_ledger_of_attached",)

# Of all rounds: by so much more may stay unexplained for the sake of knowing more of the rest.
_MORE_UNEXPLAINED = 0.01


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
    if facts is None or facts.is_indirect or facts.one_sided:
        return flows
    try:
        direct = build_ledger(run)
    except (KeyError, ValueError, RunDirError):
        return flows
    if _unexplained(direct) > _unexplained(flows) + _MORE_UNEXPLAINED:
        return flows
    return dataclasses.replace(direct, flow=facts)


def _unexplained(ledger: Ledger) -> float:
    total_ns = sum(one.duration_ns for one in ledger.rounds)
    return sum(one.residual_ns for one in ledger.rounds) / total_ns if total_ns else 0.0
