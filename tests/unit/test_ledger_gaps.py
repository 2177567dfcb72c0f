"""Rows and lines of a recorded run that never came: what is not known any more is residual.

Message edges, reads, pairs and the server's log of a real run (tests/data) are thinned out, with
and without a loss written down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import COMPONENTS
from tests.unit.recorded_run import (
    EVENTS,
    RECORDED,
    closes,
    no_component_gained,
    quick,
    recorded,
    seeds,
    truth,
    with_table,
)
from ztprobe.errors import RunDirError
from ztprobe.events.kinds import Hook
from ztprobe.rundir.store import Run, load_run

MESSAGE_BYTES = 1 << 20  # control traffic stays far below


def messages() -> list[int]:
    bursts = recorded().events["bursts"]
    return [int(i) for i in bursts.index[bursts["bytes"] >= MESSAGE_BYTES]]


def edges_of_rounds() -> dict[int, list[int]]:
    """Round -> the rows of its message edges, in time order."""
    first_ns = recorded().events["bursts"]["first_ns"]
    found = {}
    for one in truth().rounds:
        inside = [i for i in messages() if 0 <= first_ns[i] - one.start_ns < one.duration_ns]
        found[one.round] = sorted(inside, key=lambda i: int(first_ns[i]))
    assert sorted(row for rows in found.values() for row in rows) == messages()  # none is left out
    return found


@pytest.mark.parametrize("edge", range(max(map(len, edges_of_rounds().values()))))
@pytest.mark.parametrize("rounds", ["odd", "even"])
def test_a_message_edge_that_is_missing_becomes_residual(edge: int, rounds: str) -> None:
    """Each of the run's message edges in turn, at every hop: the wire's, the loopbacks', the reads'.

    Every other round misses one; those between them do not notice.
    """
    damaged = {n: rows for n, rows in edges_of_rounds().items() if n % 2 == (rounds == "odd")}
    gone = [rows[edge] for rows in damaged.values() if edge < len(rows)]
    bursts = recorded().events["bursts"]
    ledger = build_ledger(with_table(recorded(), "bursts", bursts.drop(index=gone)))
    no_component_gained(ledger)
    for before, after in zip(truth().rounds, ledger.rounds, strict=True):
        assert after == before or after.round in damaged


@quick
@given(st.sets(st.sampled_from(messages()), min_size=2, max_size=12))
def test_several_missing_edges_become_residual(rows: set[int]) -> None:
    bursts = recorded().events["bursts"]
    ledger = build_ledger(with_table(recorded(), "bursts", bursts.drop(index=list(rows))))
    no_component_gained(ledger)


def lossy(run: Run, name: str, rows: Sequence[int]) -> Run:
    """The run as it would be had these events found a full ring, with the loss written down.

    A burst is handed over when the next one of the same connection and hook begins.
    """
    table = run.events[name]
    log = []
    for row in rows:
        event = table.loc[row]
        when_ns = int(event["ts_ns"]) if name != "bursts" else _closed_ns(table, event)
        entry = {"from_ns": when_ns - 40_000_000, "to_ns": when_ns + 10_000_000, "count": 1, "ring": name}
        log.append(entry | {"channel": "ring_buffer_full"})
    loss = run.meta["loss"] | {"ring_buffer_full": len(rows)}
    return with_table(run, name, table.drop(index=list(rows)), loss=loss, loss_log=log)


def _closed_ns(bursts: pd.DataFrame, burst: pd.Series[Any]) -> int:
    same = bursts
    for column in ("connection", "hook"):
        same = same[same[column] == burst[column]]
    following = same["first_ns"][
        (same["direction"] != burst["direction"]) & (same["first_ns"] > burst["last_ns"])
    ]
    return int(following.min()) if len(following) else int(bursts["last_ns"].max())


@quick
@given(st.sampled_from(EVENTS), seeds, st.floats(0.0005, 0.03), st.booleans())
def test_counted_losses_mark_their_rounds_and_cover_the_truth(
    name: str, seed: int, share: float, full_log: bool
) -> None:
    """Every component's true value lies within what is shown, give or take the round's uncertainty.

    With our server's log, and with one of round_start and round_end alone.
    """
    chance = np.random.default_rng(seed)
    table = recorded().events[name]
    rows = sorted(chance.choice(len(table), max(1, int(share * len(table))), replace=False))
    run = lossy(recorded(), name, rows)
    if not full_log:
        rounds = [record for record in run.rounds if record["event"] in ("round_start", "round_end")]
        run = dataclasses.replace(run, rounds=rounds)
    ledger = build_ledger(run)
    closes(ledger)
    for before, after in zip(truth().rounds, ledger.rounds, strict=True):
        if not after.lost_events:
            assert after.components_ns == before.components_ns, after.round
            assert (after.coverage, after.uncertainty_ns) == (1.0, 0)
            continue
        assert after.coverage < 1.0 and after.uncertainty_ns > 0
        for part in COMPONENTS:
            off_ns = abs(after.components_ns[part] - before.components_ns[part])
            assert off_ns <= after.uncertainty_ns, (after.round, part)


def _logged(event: str) -> list[int]:
    return [i for i, record in enumerate(recorded().rounds) if record["event"] == event]


@quick
@given(st.sets(st.sampled_from(range(len(load_run(RECORDED).rounds))), min_size=1, max_size=8))
def test_missing_round_events_leave_rounds_out_or_change_nothing_measured(gone: set[int]) -> None:
    rounds = [record for i, record in enumerate(recorded().rounds) if i not in gone]
    run = dataclasses.replace(recorded(), rounds=rounds)
    lost = {recorded().rounds[i]["round"] for i in gone & {*_logged("round_start"), *_logged("round_end")}}
    kept = [one for one in truth().rounds if one.round not in lost]
    if not kept:
        with pytest.raises(RunDirError, match="no round with both"):
            build_ledger(run)
        return
    ledger = build_ledger(run)
    closes(ledger)
    assert [one.round for one in ledger.rounds] == [one.round for one in kept]
    received = {recorded().rounds[i]["round"] for i in gone & {*_logged("update_received")}}
    for before, after in zip(kept, ledger.rounds, strict=True):
        if before.round not in received:
            assert (after.components_ns, after.residual_ns) == (before.components_ns, before.residual_ns)
            assert after.critical_client == before.critical_client


def test_analysis_needs_no_more_than_the_rounds_start_and_end() -> None:
    """Other frameworks log less: the kernel's events alone name the same client and the same times."""
    needed = [record for record in recorded().rounds if record["event"] in ("round_start", "round_end")]
    ledger = build_ledger(dataclasses.replace(recorded(), rounds=needed, clients=[]))
    for before, after in zip(truth().rounds, ledger.rounds, strict=True):
        assert (after.critical_client, after.components_ns) == (before.critical_client, before.components_ns)


def test_pairs_that_are_missing_do_not_turn_the_sidecars_into_something_else() -> None:
    """Which loopback connection belongs to which wire is unknown, but there were sidecars on the way."""
    no_component_gained(build_ledger(with_table(recorded(), "pairs", recorded().events["pairs"].iloc[:0])))


@quick
@given(seeds)
def test_thinned_out_reads_do_not_move_the_ledger(seed: int) -> None:
    """What applications read orders clients and checks training; it moves no component."""
    bursts = recorded().events["bursts"]
    reads = bursts.index[bursts["hook"] == Hook.SOCK]
    gone = np.random.default_rng(seed).choice(reads, len(reads) // 2, replace=False)
    no_component_gained(build_ledger(with_table(recorded(), "bursts", bursts.drop(index=gone))))


def test_who_decided_a_round_had_no_time_to_lose_though_a_frame_came_after_its_end() -> None:
    """A PING right behind an update is taken for the update's end, and the server waits for no PING."""
    ended_ns = {}
    for one in truth().rounds:
        last_ns = max(client.arrival_ns or 0 for client in one.clients)
        ended_ns[one.round] = one.start_ns + last_ns - 1_000
    rounds = [
        event | ({"time_monotonic_ns": ended_ns[event["round"]]} if event["event"] == "round_end" else {})
        for event in recorded().rounds
        if event["event"] not in ("wait_end", "aggregate_end", "evaluate_end")
    ]
    for one in build_ledger(dataclasses.replace(recorded(), rounds=rounds)).rounds:
        (decided,) = (client for client in one.clients if client.client == one.critical_client)
        assert decided.slack_ns == 0
        assert (decided.arrival_ns or 0) > one.duration_ns
