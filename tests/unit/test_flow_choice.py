"""Which ledger tells a run of clients that speak with their server themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from analysis.flows import choice
from analysis.flows.ledger import build_flow_ledger
from analysis.ledger.model import Ledger
from ztprobe.rundir.store import Run, load_run

RECORDED = Path(__file__).parents[1] / "data" / "attached-hub"


@pytest.fixture
def ledgers(monkeypatch: pytest.MonkeyPatch) -> tuple[Ledger, Ledger]:
    """A recorded one as if there were no hub, and another that leaves nothing unexplained."""
    flows = build_flow_ledger(load_run(RECORDED))
    assert flows.flow is not None
    facts = dataclasses.replace(flows.flow, path=("server", "client"), pollers=())
    flows = dataclasses.replace(flows, flow=facts)
    rounds = tuple(dataclasses.replace(one, residual_ns=0, exchanges=1.0) for one in flows.rounds)
    direct = dataclasses.replace(flows, rounds=rounds, flow=None, notes=("direct",))
    monkeypatch.setattr(choice, "build_flow_ledger", lambda _: flows)
    monkeypatch.setattr(choice, "build_ledger", lambda _: direct)
    return flows, direct


def seen_first(after_ns: int | None) -> Run:
    """:param after_ns: the trace's beginning; None: nobody wrote it down, as on several nodes."""
    run = load_run(RECORDED)
    told = run.meta["attachment"]
    participants: list[dict[str, Any]] = []
    for one in told["participants"]:
        kept = {key: value for key, value in one.items() if key != "first_seen_ns"}
        first = {} if after_ns is None else {"first_seen_ns": told["attached_ns"] + after_ns}
        participants.append(kept | first)
    return dataclasses.replace(run, meta=run.meta | {"attachment": told | {"participants": participants}})


@pytest.mark.parametrize("after_ns", [-1, None])
def test_what_explains_more_is_taken(ledgers: tuple[Ledger, Ledger], after_ns: int | None) -> None:
    flows, _ = ledgers
    found = choice.build_ledger_of_attached(seen_first(after_ns))
    assert found.notes == ("direct",)
    assert found.flow == flows.flow


def test_a_client_that_came_meanwhile_is_told_by_what_processes_said(ledgers: tuple[Ledger, Ledger]) -> None:
    flows, _ = ledgers
    assert choice.build_ledger_of_attached(seen_first(1)) is flows
