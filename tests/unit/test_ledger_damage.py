"""Whatever happens to a recorded run's files: one clear line, or a ledger that does not lie.

Tables and logs of a real run (tests/data) are shuffled, doubled, cut off, mixed with another run's,
given wrong columns and types, and taken away.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import COMPONENTS, Ledger
from analysis.report.report import build_report
from analysis.run_checks import checked
from tests.unit.recorded_run import (
    EVENTS,
    RECORDED,
    TABLES,
    ledger_or_line,
    other,
    quick,
    recorded,
    seeds,
    truth,
    with_table,
)
from ztprobe.errors import RunDirError
from ztprobe.events.tables import TABLES as EVENT_TABLES
from ztprobe.rundir.store import Run, dump_json, load_run


def report_bytes(run: Run, ledger: Ledger) -> bytes:
    return dump_json(build_report(run, ledger, None))


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
@given(seeds)
def test_rows_of_one_nanosecond_have_one_order(seed: int) -> None:
    table = recorded().events["gaps"].copy()
    table.loc[100:130, "ts_ns"] = table["ts_ns"][130]
    order = np.random.default_rng(seed).permutation(len(table))
    one, other_way = (checked(with_table(recorded(), "gaps", rows))[0] for rows in (table, table.iloc[order]))
    pd.testing.assert_frame_equal(one.events["gaps"], other_way.events["gaps"])


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
    st.just(0) | st.integers(0, 400),
    st.sampled_from(("events/bursts.parquet", "events/gaps.parquet", "rounds.jsonl")),
)
def test_cut_off_files_are_refused_or_close(
    tmp_path_factory: pytest.TempPathFactory, cut: int, name: str
) -> None:
    path = tmp_path_factory.mktemp("cut") / "run"
    shutil.copytree(RECORDED, path)
    content = (path / name).read_bytes()
    left = content[: len(content) - 1 - cut]
    (path / name).write_bytes(left)
    ledger = ledger_or_line(lambda: build_ledger(load_run(path)))
    # The log's last lines may be gone without harm: what is left is as it was.
    assert (ledger is not None) == (name == "rounds.jsonl" and left.splitlines()[-1].endswith(b"}"))
    if ledger is not None:
        assert ledger.rounds == truth().rounds[: len(ledger.rounds)]
        assert len(ledger.rounds) >= len(truth().rounds) - 1


# --- rows that are somebody else's --------------------------------------------------------------------


@quick
@given(st.sampled_from(EVENTS), seeds, st.integers(1, 20))
def test_rows_of_another_run_are_refused(name: str, seed: int, count: int) -> None:
    foreign = other().events[name]
    foreign = foreign.sample(min(count, len(foreign)), random_state=seed % 2**32)
    mixed = pd.concat([recorded().events[name], foreign], ignore_index=True)
    with pytest.raises(RunDirError, match=r"another run's|mixed up"):
        build_ledger(with_table(recorded(), name, mixed))


@quick
@given(st.sampled_from([name for name in EVENTS if name not in ("cpu_waits", "drops")]), seeds, st.booleans())
def test_swapped_pods_are_refused(name: str, seed: int, namespaces_too: bool) -> None:
    """Rows of one client under the other's name, with or without the namespace's number."""
    chance = np.random.default_rng(seed)
    table = recorded().events[name].copy()
    inodes = {pod["name"]: pod["netns_inode"] for pod in recorded().meta["pods"]}
    mine = table["pod"] == "fl-client-0"
    if namespaces_too:
        # Without a connection or an address, a row with the other pod's namespace is the other pod's.
        known = table["local"] if name in ("dns", "connections") else table["connection"].replace(0, np.nan)
        mine &= known.notna() & ~known.astype(str).str.startswith("127.")
    mine = table.index[mine]
    rows = chance.choice(mine, min(len(mine), 5), replace=False)
    table.loc[rows, "pod"] = "fl-client-1"
    if namespaces_too:
        table.loc[rows, "netns"] = inodes["fl-client-1"]
    with pytest.raises(RunDirError, match="mixed up"):
        build_ledger(with_table(recorded(), name, table))


def test_rows_of_a_pod_that_is_not_there_are_refused() -> None:
    table = recorded().events["drops"].copy()
    table.loc[7, "pod"] = "someone"
    with pytest.raises(RunDirError, match="'someone', which is no pod of this run"):
        build_ledger(with_table(recorded(), "drops", table))


@pytest.mark.parametrize("name", EVENTS)
def test_a_whole_table_of_another_run_is_refused(name: str) -> None:
    with pytest.raises(RunDirError, match=r"another run's|mixed up"):
        build_ledger(with_table(recorded(), name, other().events[name]))


def test_another_runs_rounds_are_refused() -> None:
    with pytest.raises(RunDirError, match=r"rounds.jsonl: .* another run's"):
        build_ledger(dataclasses.replace(recorded(), rounds=other().rounds))
    with pytest.raises(RunDirError, match=r"rounds.jsonl: .*(another run's|twice|before)"):
        build_ledger(dataclasses.replace(recorded(), rounds=recorded().rounds + other().rounds))


def test_a_connection_that_nobody_wrote_is_refused_unless_events_were_lost() -> None:
    table = recorded().events["connections"]
    named = table["connection"].isin(recorded().events["pairs"]["from_connection"])
    thinned = with_table(recorded(), "connections", table.drop(table.index[named][:1]))
    with pytest.raises(RunDirError, match="is no connection of connections"):
        build_ledger(thinned)
    build_ledger(dataclasses.replace(thinned, meta=thinned.meta | {"loss": {"ring_buffer_full": 1}}))


def test_a_connection_of_a_namespace_that_was_not_known_yet_is_nobodys() -> None:
    table = recorded().events["connections"].copy()
    named = table["connection"].isin(recorded().events["state_changes"]["connection"])
    table.loc[table.index[named][0], ["pod", "netns"]] = ["", 4026531840]
    ledger = build_ledger(with_table(recorded(), "connections", table))
    assert [one.duration_ns for one in ledger.rounds] == [one.duration_ns for one in truth().rounds]


# --- columns and types --------------------------------------------------------------------------------


def _columns() -> list[tuple[str, str]]:
    return [(name, column.name) for name in TABLES for column in EVENT_TABLES[name].columns]


def _integers() -> list[tuple[str, str]]:
    return [(name, title) for name in TABLES for title in EVENT_TABLES[name].of_kind("integer")]


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


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("wrong", [None, 7, b"x"], ids=repr)
def test_one_name_that_is_no_text_is_refused(name: str, wrong: Any) -> None:
    table = recorded().events[name].copy()
    table["pod"] = table["pod"].astype(object)
    table.loc[3, "pod"] = wrong
    with pytest.raises(RunDirError, match=rf"{name}.parquet: pod holds .*, expected text"):
        build_ledger(with_table(recorded(), name, table))


@quick
@given(st.sampled_from(_columns()), st.sampled_from(sorted(WRONG)))
def test_a_column_of_the_wrong_type_is_refused(where: tuple[str, str], how: str) -> None:
    name, column = where
    table = recorded().events[name].copy()
    if (EVENT_TABLES[name].column(column).kind, how) in (("text", "text"), ("bytes", "bytes")):
        return
    table[column] = WRONG[how](table[column])
    with pytest.raises(RunDirError, match=rf"{name}.parquet") as raised:
        build_ledger(with_table(recorded(), name, table))
    assert "\n" not in str(raised.value)


# Rows that only say something of a component's inside, or of what happened in no round.
_OF_NO_COMPONENT = {
    "packets",
    "dns",
    "drops",
    "state_changes",
    "cpu_waits",
    "gaps",
    "blocked_readers",
}
# What one row can add to: a pause, a message's end, an original that arrived, a sidecar's connection.
_CAN_GAIN = {
    "bursts": {"proxy", "transmission"},
    "retransmissions": {"retransmission"},
    "duplicate_acks": {"retransmission"},
    "pairs": {"proxy"},
}


@quick
@given(st.sampled_from(_integers()), seeds, st.integers(0, 2**62))
def test_a_wild_value_is_refused_or_told_apart(where: tuple[str, str], seed: int, value: int) -> None:
    """Durations stay, and one row's word adds nothing but what such a row can say, and to its round alone."""
    name, column = where
    table = recorded().events[name].copy()
    table[column] = table[column].astype(np.int64)
    table.loc[np.random.default_rng(seed).integers(len(table)), column] = value
    ledger = ledger_or_line(lambda: build_ledger(with_table(recorded(), name, table)))
    if ledger is None:
        return
    before = truth().rounds
    assert [(one.round, one.duration_ns) for one in ledger.rounds] == [
        (one.round, one.duration_ns) for one in before
    ]
    if name in _OF_NO_COMPONENT:
        assert [one.components_ns for one in ledger.rounds] == [one.components_ns for one in before]
    gained = {
        one.round: {part for part in COMPONENTS if one.components_ns[part] > was.components_ns[part]}
        for one, was in zip(ledger.rounds, before, strict=True)
    }
    assert set().union(*gained.values()) <= _CAN_GAIN.get(name, set())
    if name != "pairs":  # which say who is whose for the whole run
        assert sum(map(bool, gained.values())) <= 2


@quick
@given(seeds, st.binary(max_size=232))
def test_wild_packet_bytes_move_no_round(seed: int, data: bytes) -> None:
    """Names, handshakes and extensions are read from what anybody may have sent."""
    table = recorded().events["packets"].copy()
    row = int(np.random.default_rng(seed).integers(len(table)))
    table.at[row, "data"] = data
    ledger = build_ledger(with_table(recorded(), "packets", table))
    assert ledger.rounds == truth().rounds
    # A handshake is one client's; the others' are as they were.
    assert sum(one != was for one, was in zip(ledger.setup, truth().setup, strict=True)) <= 1


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


def test_without_a_single_whole_round_there_is_nothing_to_analyse() -> None:
    rounds = [record for record in recorded().rounds if record["event"] != "round_end"]
    with pytest.raises(RunDirError, match="no round with both round_start and round_end"):
        build_ledger(dataclasses.replace(recorded(), rounds=rounds))


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
    at = next(
        i
        for i, record in enumerate(recorded().rounds)
        if (record["event"], record["round"]) == ("round_end", 3)
    )
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
