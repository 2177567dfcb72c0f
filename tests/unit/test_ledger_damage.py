"""Whatever happens to a recorded run's files: one clear line, or a ledger that closes and does not lie.

Tables and logs of a real run (tests/data) are shuffled, doubled, cut off, thinned out, mixed with
another run's, given wrong columns and types, and taken away.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.ledger import build_ledger
from analysis.model import COMPONENTS, Ledger
from analysis.report import build_report
from ztprobe.errors import RunDirError
from ztprobe.events import Hook
from ztprobe.store import Run, dump_json, load_run

RECORDED = Path(__file__).parents[1] / "data" / "net2-sec3"
TABLES = ("bursts", "packets", "points", "pairs")
EVENTS = ("bursts", "packets", "points")
MESSAGE_BYTES = 1 << 20  # control traffic stays far below

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


def report_bytes(run: Run, ledger: Ledger) -> bytes:
    return dump_json(build_report(run, ledger, None))


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


# --- the order and the number of rows ----------------------------------------------------------------


@quick
@given(seeds)
def test_shuffled_rows_and_lines_give_the_same_bytes(seed: int) -> None:
    chance = np.random.default_rng(seed)
    run = recorded()
    events = {name: table.iloc[chance.permutation(len(table))] for name, table in run.events.items()}
    rounds = [run.rounds[i] for i in chance.permutation(len(run.rounds))]
    clients = [run.clients[i] for i in chance.permutation(len(run.clients))]
    mixed = dataclasses.replace(run, events=events, rounds=rounds, clients=clients)
    assert report_bytes(run, build_ledger(mixed)) == report_bytes(run, truth())


@quick
@given(seeds, st.floats(0.001, 1.0))
def test_doubled_rows_and_lines_count_once(seed: int, share: float) -> None:
    chance = np.random.default_rng(seed)
    run = recorded()
    events = {}
    for name, table in run.events.items():
        again = table.iloc[chance.integers(0, len(table), max(1, int(share * len(table))))]
        events[name] = pd.concat([table, again], ignore_index=True)
    doubled = dataclasses.replace(
        run, events=events, rounds=run.rounds + run.rounds[::2], clients=run.clients * 2
    )
    ledger = build_ledger(doubled)
    assert ledger.rounds == truth().rounds and ledger.setup == truth().setup
    assert len(ledger.notes) == len(TABLES) + 2  # and it is said


@quick
@given(st.sampled_from(TABLES), st.data())
def test_cut_off_tables_are_refused(name: str, data: st.DataObject) -> None:
    """run.json says how many rows there were."""
    table = recorded().events[name]
    kept = data.draw(st.integers(0, len(table) - 1))
    events = recorded().events | {name: table.iloc[:kept]}
    with pytest.raises(RunDirError, match=rf"{name}.parquet: holds {kept} rows, and the run wrote"):
        build_ledger(dataclasses.replace(recorded(), events=events))


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_table_is_refused(name: str) -> None:
    events = {key: table for key, table in recorded().events.items() if key != name}
    with pytest.raises(RunDirError, match=f"{name}.parquet: is missing"):
        build_ledger(dataclasses.replace(recorded(), events=events))


@quick
@given(
    st.integers(0, 400), st.sampled_from(("events/bursts.parquet", "events/points.parquet", "rounds.jsonl"))
)
def test_cut_off_files_are_refused_or_close(
    tmp_path_factory: pytest.TempPathFactory, cut: int, name: str
) -> None:
    import shutil

    path = tmp_path_factory.mktemp("cut") / "run"
    shutil.copytree(RECORDED, path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) - 1 - cut])
    ledger = ledger_or_line(lambda: build_ledger(load_run(path)))
    # the log's last lines may be gone without harm
    assert ledger is None or name == "rounds.jsonl"


# --- rows that never came -----------------------------------------------------------------------------


def messages() -> list[int]:
    bursts = recorded().events["bursts"]
    return [int(i) for i in bursts.index[bursts["bytes"] >= MESSAGE_BYTES]]


@pytest.mark.parametrize("row", messages())
def test_a_message_edge_that_is_missing_becomes_residual(row: int) -> None:
    """Each of the run's message edges in turn, at every hop: the wire's, the loopbacks', the reads'."""
    bursts = recorded().events["bursts"]
    ledger = build_ledger(with_table(recorded(), "bursts", bursts.drop(index=row)))
    no_component_gained(ledger)


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
    for column in ("netns", "laddr", "raddr", "lport", "rport", "hook"):
        same = same[same[column] == burst[column]]
    following = same["first_ns"][(same["dir"] != burst["dir"]) & (same["first_ns"] > burst["last_ns"])]
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


# --- rows that are somebody else's --------------------------------------------------------------------


@quick
@given(st.sampled_from(EVENTS), seeds, st.integers(1, 20))
def test_rows_of_another_run_are_refused(name: str, seed: int, count: int) -> None:
    foreign = other().events[name].sample(count, random_state=seed % 2**32)
    mixed = pd.concat([recorded().events[name], foreign], ignore_index=True)
    with pytest.raises(RunDirError, match=r"another run's|mixed up"):
        build_ledger(with_table(recorded(), name, mixed))


@quick
@given(st.sampled_from(EVENTS), seeds, st.booleans())
def test_swapped_pods_are_refused(name: str, seed: int, namespaces_too: bool) -> None:
    """Rows of one client under the other's name, with or without the namespace's number."""
    chance = np.random.default_rng(seed)
    table = recorded().events[name].copy()
    inodes = {pod["name"]: pod["netns_inode"] for pod in recorded().meta["pods"]}
    # Loopback rows carry no address: with the namespace exchanged too they are the other pod's.
    eth = (table["laddr"] & 0xFF != 127) & (table["laddr"] != 0) if namespaces_too else table["laddr"] > -1
    mine = table.index[(table["pod"] == "fl-client-0") & eth & (table.get("kind", 0) != 4)]
    rows = chance.choice(mine, min(len(mine), 5), replace=False)
    table.loc[rows, "pod"] = "fl-client-1"
    if namespaces_too:
        table.loc[rows, "netns"] = inodes["fl-client-1"]
    with pytest.raises(RunDirError, match="mixed up"):
        build_ledger(with_table(recorded(), name, table))


def test_rows_of_a_pod_that_is_not_there_are_refused() -> None:
    table = recorded().events["points"].copy()
    table.loc[7, "pod"] = "someone"
    with pytest.raises(RunDirError, match="'someone', which is no pod of this run"):
        build_ledger(with_table(recorded(), "points", table))


@pytest.mark.parametrize("name", EVENTS)
def test_a_whole_table_of_another_run_is_refused(name: str) -> None:
    with pytest.raises(RunDirError, match=r"another run's|mixed up"):
        build_ledger(with_table(recorded(), name, other().events[name]))


def test_another_runs_rounds_are_refused() -> None:
    with pytest.raises(RunDirError, match=r"rounds.jsonl: .* another run's"):
        build_ledger(dataclasses.replace(recorded(), rounds=other().rounds))
    with pytest.raises(RunDirError, match=r"rounds.jsonl: .*(another run's|twice|before)"):
        build_ledger(dataclasses.replace(recorded(), rounds=recorded().rounds + other().rounds))


# --- columns and types --------------------------------------------------------------------------------


def _columns() -> list[tuple[str, str]]:
    ignored = {"data_bytes", "record0"}  # nothing reads the former; the latter is like its neighbours
    return [(n, c) for n in TABLES for c in recorded().events[n].columns if c not in ignored]


@pytest.mark.parametrize(("name", "column"), _columns())
def test_a_missing_column_is_named(name: str, column: str) -> None:
    table = recorded().events[name].drop(columns=column)
    with pytest.raises(RunDirError, match=f"{name}.parquet: .*{column}"):
        build_ledger(with_table(recorded(), name, table))


WRONG: dict[str, Callable[[pd.Series[Any]], Any]] = {
    "text": lambda values: [str(value) for value in values],
    "floats": lambda values: [float(i) for i in range(len(values))],
    "gaps": lambda values: pd.array([None] * len(values), dtype="Int64"),
    "negative": lambda values: [-1] * len(values),
    "bytes": lambda values: [b"x"] * len(values),
}


@quick
@given(st.sampled_from(_columns()), st.sampled_from(sorted(WRONG)))
def test_a_column_of_the_wrong_type_is_refused(where: tuple[str, str], how: str) -> None:
    name, column = where
    table = recorded().events[name].copy()
    textual = column in ("pod", "process")
    if (textual and how == "text") or (column == "data" and how == "bytes"):
        return
    table[column] = WRONG[how](table[column])
    with pytest.raises(RunDirError, match=rf"{name}.parquet") as raised:
        build_ledger(with_table(recorded(), name, table))
    assert "\n" not in str(raised.value)


@quick
@given(st.sampled_from(_columns()), seeds, st.integers(0, 2**62))
def test_a_wild_value_is_refused_or_the_ledger_closes(where: tuple[str, str], seed: int, value: int) -> None:
    name, column = where
    if column in ("pod", "process", "data"):
        return
    table = recorded().events[name].copy()
    table[column] = table[column].astype(np.int64)
    table.loc[np.random.default_rng(seed).integers(len(table)), column] = value
    ledger_or_line(lambda: build_ledger(with_table(recorded(), name, table)))


@quick
@given(seeds, st.binary(max_size=232))
def test_wild_packet_bytes_never_stop_the_analysis(seed: int, data: bytes) -> None:
    """Names, handshakes and extensions are read from what anybody may have sent."""
    table = recorded().events["packets"].copy()
    row = int(np.random.default_rng(seed).integers(len(table)))
    table.at[row, "data"] = data
    closes(build_ledger(with_table(recorded(), "packets", table)))


# --- clocks and logs ----------------------------------------------------------------------------------


@quick
@given(st.sampled_from(EVENTS), st.integers(100_000_000_000, 10**18))
def test_a_clock_that_jumped_is_refused(name: str, jump_ns: int) -> None:
    table = recorded().events[name].copy()
    late = table.index[len(table) // 2 :]
    for column in ("first_ns", "last_ns", "ts_ns"):
        if column in table:
            table.loc[late, column] += jump_ns
    with pytest.raises(RunDirError, match="outside of the run's time"):
        build_ledger(with_table(recorded(), name, table))


def test_a_wall_clock_that_jumped_changes_nothing_but_a_note() -> None:
    meta = recorded().meta
    samples = [dict(sample) for sample in meta["clock_samples"]]
    for sample in samples[len(samples) // 2 :]:
        sample["time_unix_ns"] += 3_600_000_000_000
    stepped = dataclasses.replace(recorded(), meta=meta | {"clock_samples": samples})
    ledger = build_ledger(stepped)
    assert ledger.rounds == truth().rounds
    notes = build_report(stepped, ledger, None)["notes"]
    assert any("wall clock moved by 3600000 ms" in note for note in notes)


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


def test_without_a_single_whole_round_there_is_nothing_to_analyse() -> None:
    rounds = [record for record in recorded().rounds if record["event"] != "round_end"]
    with pytest.raises(RunDirError, match="no round with both round_start and round_end"):
        build_ledger(dataclasses.replace(recorded(), rounds=rounds))


def test_analysis_needs_no_more_than_the_rounds_start_and_end() -> None:
    """Other frameworks log less: the kernel's events alone name the same client and the same times."""
    needed = [record for record in recorded().rounds if record["event"] in ("round_start", "round_end")]
    ledger = build_ledger(dataclasses.replace(recorded(), rounds=needed, clients=[]))
    for before, after in zip(truth().rounds, ledger.rounds, strict=True):
        assert (after.critical_client, after.components_ns) == (before.critical_client, before.components_ns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r | {"time_monotonic_ns": r["time_monotonic_ns"] - 20_000_000_000},
            "before|twice|outside",
        ),
        (lambda r: r | {"round": 2}, "twice"),
    ],
)
def test_rounds_that_cannot_be(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    """Round 3's end before its start; two ends of one round."""
    at = next(i for i in _logged("round_end") if recorded().rounds[i]["round"] == 3)
    rounds = list(recorded().rounds)
    rounds[at] = change(rounds[at])
    with pytest.raises(RunDirError, match=message):
        build_ledger(dataclasses.replace(recorded(), rounds=rounds))


@pytest.mark.parametrize(
    "pods", [None, [], "x", [{"name": "a"}], [{"name": "a", "address": "x", "labels": {}}]]
)
def test_pods_that_are_not_told_are_refused(pods: Any) -> None:
    with pytest.raises(RunDirError, match="pods"):
        build_ledger(dataclasses.replace(recorded(), meta=recorded().meta | {"pods": pods}))


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
