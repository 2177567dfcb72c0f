"""The recorded run of tests/data, its ledger, and what must hold of the ledger of any damaged copy."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from analysis.evidence.reader import TIMES
from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import COMPONENTS, Ledger
from ztprobe.errors import RunDirError
from ztprobe.events.tables import ATTACHED_TABLES
from ztprobe.events.tables import TABLES as EVENT_TABLES
from ztprobe.rundir.store import Run, load_run

RECORDED = Path(__file__).parents[1] / "data" / "net2-sec3"
# Every table that it has, and those with a time of which the baseline has rows, too.
TABLES = tuple(name for name in EVENT_TABLES if name not in ATTACHED_TABLES)
EVENTS = tuple(name for name in TIMES if name != "blocked_readers")

quick = settings(
    max_examples=int(os.environ.get("ZTPROBE_EXAMPLES", "8")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32 - 1)


@functools.cache
def recorded() -> Run:
    return load_run(RECORDED)


@functools.cache
def other() -> Run:
    return load_run(RECORDED / "baseline")


@functools.cache
def truth() -> Ledger:
    return build_ledger(recorded())


def with_table(run: Run, name: str, table: pd.DataFrame, **meta: Any) -> Run:
    """The run with another table, and run.json written as if it had been so from the start."""
    rows = run.meta["table_rows"] | {name: len(table)}
    events = run.events | {name: table.reset_index(drop=True)}
    return dataclasses.replace(run, events=events, meta=run.meta | {"table_rows": rows} | meta)


def closes(ledger: Ledger) -> None:
    for one in ledger.rounds:
        assert sum(one.components_ns.values()) + one.residual_ns == one.duration_ns
        assert one.residual_ns >= 0 and min(one.components_ns.values()) >= 0
        assert one.components_ns.keys() == set(COMPONENTS)
    for setup in ledger.setup:
        assert sum(setup.components_ns.values()) + setup.residual_ns == setup.duration_ns


def ledger_or_line(build: Callable[[], Ledger]) -> Ledger | None:
    """A ledger that closes, or None after an error of one line; nothing else may come out."""
    try:
        ledger = build()
    except RunDirError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return None
    closes(ledger)
    return ledger


def no_component_gained(ledger: Ledger) -> None:
    """What is not known any more is residual: no component has more than in the undamaged run.

    The critical client may not be known any more; then nobody's way is shown.
    """
    closes(ledger)
    assert len(ledger.rounds) == len(truth().rounds)
    for before, after in zip(truth().rounds, ledger.rounds, strict=True):
        assert after.duration_ns == before.duration_ns
        assert after.critical_client in (before.critical_client, None)
        for name in COMPONENTS:
            assert after.components_ns[name] <= before.components_ns[name], (after.round, name)
