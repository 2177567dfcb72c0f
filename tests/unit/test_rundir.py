"""What is written is read back, and whatever cannot be understood is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.recorded_run import RECORDED, TABLES
from tests.unit.synthetic_run import make_meta, save_run
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import RunDir, create_run_dir, dump_json, load_run

BIG = 2**63 - 25  # no float64 holds it


def test_events_come_back_as_the_integers_they_were(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "time_ns": np.array([BIG, 3], dtype=np.int64),
            "bytes": np.array([2**64 - 1, 0], dtype=np.uint64),
            "port": np.array([50051, 53], dtype=np.uint16),
            "gap_ns": pd.array([BIG, None], dtype="Int64"),
            "pod": ["fl-server", "fl-client-0"],
        },
        index=[7, 9],
    )
    save_run(tmp_path / "run")
    RunDir(tmp_path / "run").write_events("transfers", frame)
    back = load_run(tmp_path / "run").events["transfers"]
    assert list(back.columns) == list(frame.columns)
    assert [str(kind) for kind in back.dtypes[:4]] == ["int64", "uint64", "uint16", "Int64"]
    assert back["time_ns"].tolist() == [BIG, 3]
    assert back["gap_ns"][0] == BIG
    assert back["gap_ns"].isna().tolist() == [False, True]
    assert back["pod"].tolist() == ["fl-server", "fl-client-0"]
    assert back.index.tolist() == [0, 1]


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    run_dir = create_run_dir(tmp_path / "run")
    run_dir.write_events(
        "drops", pd.DataFrame({"time_ns": pd.Series(dtype="int64"), "pod": pd.Series(dtype="str")})
    )
    run_dir.append_jsonl("rounds.jsonl")
    run_dir.finish(make_meta())
    back = load_run(tmp_path / "run").events["drops"]
    assert list(back.columns) == ["time_ns", "pod"]
    assert len(back) == 0
    assert back["time_ns"].dtype == "int64"


def test_equal_events_are_equal_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"time_ns": range(1000), "pod": ["a", "b"] * 500})
    written = []
    for name in ("one", "two"):
        run_dir = create_run_dir(tmp_path / name)
        run_dir.write_events("transfers", frame)
        written.append((tmp_path / name / "events" / "transfers.parquet").read_bytes())
    assert written[0] == written[1]
    assert b"pandas" not in written[0]


def test_a_column_of_mixed_types_is_refused(tmp_path: Path) -> None:
    run_dir = create_run_dir(tmp_path / "run")
    with pytest.raises(RunDirError, match="events odd: not a table of plain columns"):
        run_dir.write_events("odd", pd.DataFrame({"value": [1, "two", object()]}))
    assert not list((tmp_path / "run" / "events").iterdir())


def test_a_run_comes_back_with_both_logs(tmp_path: Path) -> None:
    run = load_run(save_run(tmp_path / "run"))
    assert run.name == "net2-sec3"
    assert run.meta["complete"] is True
    assert run.meta["schema_version"] == 2
    assert [one["event"] for one in run.rounds[:2]] == ["round_start", "round_end"]
    assert run.clients == []
    assert run.events == {}


def test_clients_may_have_logged_nothing(tmp_path: Path) -> None:
    (save_run(tmp_path / "run") / "clients.jsonl").unlink()
    assert load_run(tmp_path / "run").clients == []


def test_nothing_is_left_beside_a_written_file(tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    assert sorted(one.name for one in (tmp_path / "run").iterdir()) == [
        "clients.jsonl",
        "events",
        "logs",
        "rounds.jsonl",
        "run.json",
    ]


def test_a_run_never_overwrites_a_run(tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    with pytest.raises(RunDirError, match="is not empty"):
        create_run_dir(tmp_path / "run")
    create_run_dir(tmp_path / "run" / "baseline")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunDirError, match="is in the way of a directory"):
            create_run_dir(path)


def test_a_place_is_called_what_the_user_calls_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=f"^{tmp_path}/out: is in the way"):
        create_run_dir(tmp_path / "file" / ".out.partial-1", shown=tmp_path / "out")


def test_a_run_that_nobody_could_load_is_not_finished(tmp_path: Path) -> None:
    run_dir = create_run_dir(tmp_path / "run")
    with pytest.raises(RunDirError, match=r"loss\.map_full: .*-1"):
        run_dir.finish(make_meta(loss={"map_full": -1}))
    assert not (tmp_path / "run" / "run.json").exists()


def test_json_is_the_same_for_equal_data() -> None:
    assert (
        dump_json({"b": 0.1, "a": [1]})
        == dump_json({"a": [1], "b": 0.1})
        == b'{\n  "a": [\n    1\n  ],\n  "b": 0.1\n}\n'
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json(float("nan"))


def edit_meta(**changes: object) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        meta = json.loads((path / "run.json").read_text()) | changes
        (path / "run.json").write_text(
            json.dumps({key: value for key, value in meta.items() if value is not ...}, default=str)
        )

    return edit


def edit_log(**changes: object) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        first, *others = (path / "rounds.jsonl").read_text().splitlines()
        lines = [json.dumps(json.loads(first) | changes), *others]
        (path / "rounds.jsonl").write_text("\n".join(lines) + "\n")

    return edit


def drop_meta(name: str) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        meta = json.loads((path / "run.json").read_text())
        del meta[name]
        (path / "run.json").write_text(json.dumps(meta))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "run.json").unlink(), "run.json is missing: not a run directory"),
        (lambda path: (path / "run.json").write_text('{"schema'), "run.json:1: is not JSON"),
        (lambda path: (path / "run.json").write_text("[" * 100_000), "run.json: is nested too deeply"),
        (lambda path: (path / "run.json").write_text("[]"), "holds a list where an object was expected"),
        (lambda path: (path / "run.json").write_bytes(b"\xff\xfe\x00"), "run.json:1: is not UTF-8 text"),
        (
            edit_meta(schema_version=3),
            "schema_version 3 is newer than this ztprobe reads (2); update ztprobe",
        ),
        (
            edit_meta(schema_version=1),
            "schema_version 1 is from an older ztprobe, whose events this one does not read (2); trace again",
        ),
        (edit_meta(schema_version="1"), "schema_version is '1', expected 2"),
        (edit_meta(schema_version=True), "schema_version is True, expected 2"),
        (drop_meta("schema_version"), "schema_version is None, expected 2"),
        (edit_meta(complete=False), "the run is incomplete"),
        (drop_meta("complete"), "the run is incomplete"),
        (drop_meta("kernel"), "'kernel' is a required property"),
        (edit_meta(experiment="net2-sec3"), "run.json: experiment: 'net2-sec3' is not of type 'object'"),
        (edit_meta(clock_samples=[]), "run.json: clock_samples: []"),
        (edit_meta(probes=[{"signal": "x"}]), "run.json: probes[0]: 'hook' is a required property"),
        (edit_meta(loss={"map_full": 1.5}), "run.json: loss.map_full: 1.5 is not of type 'integer'"),
        (lambda path: (path / "rounds.jsonl").unlink(), "rounds.jsonl is missing"),
        (
            lambda path: (path / "rounds.jsonl").write_text('{"event": "round_start"}\n'),
            "rounds.jsonl:1: time_unix_ns is None",
        ),
        (edit_log(round=[1]), "rounds.jsonl:1: round is [1], expected a number"),
        (edit_log(accuracy="good"), "rounds.jsonl:1: accuracy is 'good', expected a number"),
        (edit_log(client_id=5), "rounds.jsonl:1: client_id is 5, expected text"),
        (
            edit_log(time_unix_ns=2**63),
            "rounds.jsonl:1: time_unix_ns is 9223372036854775808, expected an int",
        ),
        (lambda path: (path / "rounds.jsonl").write_text('{"event"'), "rounds.jsonl:1: is not JSON"),
        (lambda path: (path / "rounds.jsonl").write_text("3\n"), "rounds.jsonl:1: expected an object"),
        (lambda path: (path / "clients.jsonl").write_text("\n"), "clients.jsonl:1: is not JSON"),
        (lambda path: (path / "events" / "drops.parquet").write_bytes(b"PAR1"), "drops.parquet: is damaged"),
        (
            lambda path: (path / "events" / "drops.parquet").mkdir(),
            "drops.parquet: is a directory, expected a",
        ),
        (lambda path: (path / "events").rmdir(), "events/ is missing"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    path = save_run(tmp_path / "run")
    damage(path)
    with pytest.raises(RunDirError) as caught:
        load_run(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def damaged(tmp_path: Path, name: str) -> Path:
    """A recorded run as it is written now, with one byte of a file changed."""
    shutil.copytree(RECORDED, tmp_path / "run", ignore=shutil.ignore_patterns("baseline"))
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    RunDir(tmp_path / "run").finish(meta)
    return tmp_path / "run" / name


@pytest.mark.parametrize("name", [*(f"events/{table}.parquet" for table in TABLES), "rounds.jsonl"])
def test_any_byte_that_changes_is_noticed(tmp_path: Path, name: str) -> None:
    file = damaged(tmp_path, name)
    load_run(tmp_path / "run")
    whole = file.read_bytes()
    chance = np.random.default_rng(len(whole))
    for place in chance.integers(0, len(whole), 40):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(chance.integers(8))
        file.write_bytes(changed)
        with pytest.raises(RunDirError):
            load_run(tmp_path / "run")
    file.write_bytes(whole)
    load_run(tmp_path / "run")


def test_a_table_of_too_many_rows_is_refused_by_its_footer(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run")
    rows = 60_000_000
    ones = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int8)), pa.array([1]))
    pq.write_table(pa.table({"ts_ns": ones}), path / "events" / "points.parquet", compression="zstd")
    began = time.process_time()
    with pytest.raises(RunDirError, match=r"points.parquet: holds 60000000 rows, expected at most 20000000"):
        load_run(path)
    assert time.process_time() - began < 1


def test_a_table_of_one_long_text_in_every_row_is_refused(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run")
    texts = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(100_000, dtype=np.int32)), pa.array(["x" * 100_000])
    )
    pq.write_table(pa.table({"pod": texts}), path / "events" / "points.parquet", store_schema=False)
    with pytest.raises(RunDirError, match=r"points.parquet: unpacks to 10000000000 bytes of text, at most"):
        load_run(path)


def test_a_table_of_more_rows_than_the_run_wrote_is_refused_by_its_footer(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run")
    edit_meta(table_rows={"points": 3})(path)
    pq.write_table(pa.table({"ts_ns": [1, 2, 3, 4]}), path / "events" / "points.parquet")
    with pytest.raises(RunDirError, match=r"points.parquet: holds 4 rows, expected at most 3"):
        load_run(path)


@pytest.mark.parametrize("name", ["run.json", "rounds.jsonl", "clients.jsonl", "events/points.parquet"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_never_ends_is_not_read(tmp_path: Path, name: str, kind: str) -> None:
    path = save_run(tmp_path / "run")
    (path / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to("/dev/zero")
    with pytest.raises(
        RunDirError, match=rf"{name}: is a {'FIFO' if kind == 'fifo' else 'device'}, expected a reg"
    ):
        load_run(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"experiment": {"name": "\\ud800"}}', "run.json: has half of a surrogate pair in a text"),
        ('{"wall_ns": 1e999}', "run.json: '1e999' is no number that JSON knows"),
        ('{"wall_ns": Infinity}', "run.json: Infinity is no number that JSON knows"),
        ('{\n"a": 1,\n"a": 2}', "run.json:3: 'a' is given twice, on line 2 too"),
        ("[" * 500 + "]" * 500, "run.json: is nested more than 100 deep"),
        ("9" * 5000, "run.json: is not JSON that is read here"),
    ],
)
def test_json_that_python_alone_would_take_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = save_run(tmp_path / "run")
    (path / "run.json").write_text(text)
    with pytest.raises(RunDirError) as caught:
        load_run(path)
    assert str(path / said) in str(caught.value)


def test_a_column_name_that_is_no_text_is_damage(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run")
    table = path / "events" / "odd.parquet"
    pq.write_table(pa.table({"abcdefgh": [1]}), table, store_schema=False)
    table.write_bytes(table.read_bytes().replace(b"abcdefgh", b"abc\xff\xfefgh"))
    with pytest.raises(RunDirError, match=r"odd\.parquet: is damaged"):
        load_run(path)


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_value_that_is_no_text_is_damage(tmp_path: Path, dictionary: bool) -> None:
    path = save_run(tmp_path / "run")
    table = path / "events" / "odd.parquet"
    texts = pa.table({"pod": ["abcdefgh", "b"] * 9})
    pq.write_table(texts, table, store_schema=False, compression="none", use_dictionary=dictionary)
    table.write_bytes(table.read_bytes().replace(b"abcdefgh", b"abc\xff\xfefgh"))
    with pytest.raises(RunDirError, match=r"odd\.parquet: is damaged"):
        load_run(path)


def test_a_year_that_no_clock_shows_is_refused(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run")
    edit_meta(clock_samples=[{"time_unix_ns": 10**21, "time_monotonic_ns": 1}])(path)
    with pytest.raises(
        RunDirError, match=r"run.json: clock_samples\[0\].time_unix_ns: 1000000000000000000000 is"
    ):
        load_run(path)


def test_a_schedule_that_repeats_has_a_period(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run")
    condition = {"delay_ms": 1, "jitter_ms": 0, "distribution": "none", "loss_pct": 0, "rate_mbit": None}
    change = condition | {"due_ns": 1, "from_ns": 1, "at_ns": 1, "step": 0, "skipped": 0, "error": None}
    schedule = {"name": "x", "repeat": True, "steps": [condition | {"from_s": 0}], "changes": [change]}
    emulation = json.loads((path / "run.json").read_text())["emulation"] | {"schedule": schedule}
    edit_meta(emulation=emulation)(path)
    with pytest.raises(RunDirError, match=r"run.json: emulation.schedule: 'period_s' is a required property"):
        load_run(path)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="does not exist"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="is not a directory"):
        load_run(tmp_path / "file")
