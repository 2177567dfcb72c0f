"""Events on disk while a run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ztprobe.events.tables import RINGS, ring_type
from ztprobe.rundir import batches
from ztprobe.rundir.batches import BatchWriter, read_parts


def rows_of(ring: str, count: int, seed: int) -> np.ndarray:
    dtype = ring_type(ring)
    random = np.random.default_rng(seed).bytes(dtype.itemsize * count)
    return np.frombuffer(random, dtype)


def test_every_kind_comes_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_GROUP_ROWS", 100)
    writer = BatchWriter(tmp_path / "batches")
    written = {ring: [rows_of(ring, 30, n) for n in range(9)] for ring in RINGS}
    for number in range(9):
        for kind, each in written.items():
            writer.write(kind, each[number])
    writer.end_part({"pods": {"7": "a"}, "pairs": []})
    (part,) = read_parts(tmp_path / "batches")
    assert part.names == {"pods": {"7": "a"}, "pairs": []}
    for kind, each in written.items():
        assert part.rows[kind].tobytes() == np.concatenate(each).tobytes()
        assert part.rows[kind].dtype == ring_type(kind)


def test_rows_reach_the_disk_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_GROUP_ROWS", 100)
    writer = BatchWriter(tmp_path / "batches")
    sizes = []
    for number in range(40):
        writer.write("points", rows_of("points", 50, number))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "batches").iterdir()))
    assert sizes[0] == 0
    assert sizes[-1] > 0.5 * 40 * 50 * ring_type("points").itemsize  # random bytes do not shrink


def test_each_part_has_its_own_names(tmp_path: Path) -> None:
    writer = BatchWriter(tmp_path / "batches")
    first, second = rows_of("points", 3, 1), rows_of("points", 4, 2)
    writer.write("points", first)
    writer.end_part({"pods": {"7": "a"}})
    writer.write("points", second)
    writer.end_part({"pods": {"7": "b"}})
    parts = list(read_parts(tmp_path / "batches"))
    assert [part.names["pods"]["7"] for part in parts] == ["a", "b"]
    assert [part.rows["points"].tobytes() for part in parts] == [first.tobytes(), second.tobytes()]


def test_what_a_killed_writer_has_written_is_read_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_GROUP_ROWS", 10)
    writer = BatchWriter(tmp_path / "batches")
    written = [rows_of("points", 10, n) for n in range(4)]
    for rows in written:
        writer.write("points", rows)
    (file,) = (tmp_path / "batches").iterdir()
    for cut_bytes, groups in ((0, 4), (20, 3), (file.stat().st_size - 8, None)):
        copy = tmp_path / f"cut-{cut_bytes}"
        copy.mkdir()
        (copy / file.name).write_bytes(file.read_bytes()[: file.stat().st_size - cut_bytes])
        assert list(read_parts(copy)) == []  # what its numbers stand for is not known
        (part,) = read_parts(copy, {"pods": {"7": "a"}})
        assert part.names == {"pods": {"7": "a"}}
        if groups is None:
            assert part.rows == {}
        else:
            assert part.rows["points"].tobytes() == np.concatenate(written[:groups]).tobytes()
