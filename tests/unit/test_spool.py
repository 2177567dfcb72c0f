"""The queue between an agent and a collector that may be away."""

from __future__ import annotations

import gc
import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_batches import rows_of
from ztprobe.agent import spool_sink
from ztprobe.agent.sinks import Owners
from ztprobe.agent.spool import END, Spool
from ztprobe.agent.spool_sink import SpoolSink, read_message
from ztprobe.events.tables import RINGS

NAMES = Owners(pods={7: "a"}, processes={9: "a/app"})


def numbered(ring: str, count: int, first: int) -> np.ndarray:
    rows = rows_of(ring, count, first).copy()
    rows["ts_ns"] = np.arange(first, first + count)
    return rows


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_sink, "_GROUP_ROWS", 100)


def test_every_kind_comes_out_as_it_went_in_and_in_order(tmp_path: Path) -> None:
    sink = SpoolSink(tmp_path / "queue", 64 << 20)
    written = {ring: [numbered(ring, 30, 100 * n) for n in range(9)] for ring in RINGS}
    for number in range(9):
        for kind, each in written.items():
            sink.write(kind, each[number])
    sink.close(NAMES, [[1, 2, 3]])
    got: dict[str, list[np.ndarray]] = {}
    segments = Spool(tmp_path / "queue").segments()
    assert [segment.sequence for segment in segments] == list(range(len(segments)))
    for segment in segments[:-1]:
        said, rows = read_message(segment.path.read_bytes())
        assert (said["kind"], rows.size) == (segment.kind, segment.rows)
        got.setdefault(segment.kind, []).append(rows)
    for kind, parts in written.items():
        assert np.concatenate(got[kind]).tobytes() == np.concatenate(parts).tobytes()
        assert got[kind][0].dtype == parts[0].dtype
    said, rows = read_message(segments[-1].path.read_bytes())
    assert json.loads(said["names"]) == {**NAMES.as_dict(), "pairs": [[1, 2, 3]]}
    assert (said["kind"], rows.size) == (END, 0)
    assert sink.losses() == []


def test_what_does_not_fit_is_counted_by_kind_and_when(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    sink, bound = SpoolSink(directory, 40_000), 40_000
    for number in range(20):
        sink.write("bursts", numbered("bursts", 100, 1000 * number))
    waiting = Spool(directory).queued()
    assert 0 < waiting["bytes"] <= bound
    assert sum(path.stat().st_size for path in directory.glob("*.arrow")) == waiting["bytes"]
    assert waiting["rows"] + waiting["lost"]["bursts"] == 2000
    (entry,) = sink.losses()
    assert entry == {
        "from_ns": 10 * waiting["rows"],  # the first that found no room
        "to_ns": 19_100,
        "channel": "queue_full",
        "count": 2000 - waiting["rows"],
        "ring": "bursts",
    }
    # There is room again, and a second time without is an entry of its own.
    spool = Spool(directory)
    delivered = spool.segments()
    assert all(spool.forget(segment) for segment in delivered)
    assert not any(spool.forget(segment) for segment in delivered)  # once each, whoever else does
    sink.write("bursts", numbered("bursts", 100, 50_000))
    assert Spool(directory).queued()["rows"] == 100
    for number in range(60, 80):
        sink.write("bursts", numbered("bursts", 100, 1000 * number))
    assert len(sink.losses()) == 2
    sink.close(NAMES, [])
    assert Spool(directory).segments()[-1].kind == END  # for which there is always room


def test_a_full_disk_loses_and_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = SpoolSink(tmp_path / "queue", 64 << 20)

    def refuse(_path: Path, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", refuse)
        sink.write("points", numbered("points", 100, 0))
    sink.write("points", numbered("points", 100, 100))
    assert [(entry["ring"], entry["count"]) for entry in sink.losses()] == [("points", 100)]
    assert Spool(tmp_path / "queue").queued()["rows"] == 100


def test_a_collector_that_is_away_does_not_show_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quarter of an hour of segments, as many as with one a second and kind, each of a few rows.
    monkeypatch.setattr(spool_sink, "_GROUP_ROWS", 1)
    sink = SpoolSink(tmp_path / "queue", 256 << 20)
    one = {ring: numbered(ring, 2, 0) for ring in RINGS}

    def pass_by(seconds: int) -> int:
        for _ in range(seconds):
            for ring, rows in one.items():
                sink.write(ring, rows.copy())
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        held_bytes = [pass_by(225) for _ in range(4)]
        # What grows by leaps, such as Python's own table of names, is nothing that grows with the queue.
        grown_bytes = min(after - before for before, after in itertools.pairwise(held_bytes))
        spool = Spool(tmp_path / "queue")
        tracemalloc.reset_peak()
        now_bytes = tracemalloc.get_traced_memory()[0]
        assert spool.queued()["segments"] == 900 * len(RINGS)
        asked_bytes = tracemalloc.get_traced_memory()[1] - now_bytes
    finally:
        tracemalloc.stop()
    assert sink.losses() == []
    assert grown_bytes < 1 << 18
    assert asked_bytes < 1 << 18
