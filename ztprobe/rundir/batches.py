"""Events of a run that is going on, kept on disk in the form in which the kernel wrote them.

``events/.batches/KIND.N.parquet`` grows by a row group whenever enough records have come, so that
nothing is held longer than that; its columns are the members of the kind's struct. What numbers in
it stand for is written beside it when a part is complete (``names.N.json``): a second part begins
only where a number comes to stand for something else. When the run has ended the parts become the
tables that are analysed, and go.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

__all__ = ("BATCHES_DIR", "BatchWriter", "Part", "read_parts", "rows_of", "table_of")

BATCHES_DIR = Path("events") / ".batches"

_GROUP_ROWS = 1 << 14
_GROUP_S = 10.0  # what a machine that goes down can take along


class BatchWriter:
    """Writes batches of structured arrays; `end_part` completes what was written so far.

    :param directory: is made.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._part = 0
        self._writers: dict[str, Any] = {}
        self._held: dict[str, list[np.ndarray]] = {}
        self._held_rows = 0
        self._since_s = time.monotonic()

    def write(self, kind: str, rows: np.ndarray) -> None:
        """Take a batch; written to disk with those that follow soon."""
        self._held.setdefault(kind, []).append(rows)
        self._held_rows += rows.size
        if self._held_rows >= _GROUP_ROWS or time.monotonic() - self._since_s >= _GROUP_S:
            self._flush()

    def _flush(self) -> None:
        for kind, held in self._held.items():
            table = table_of(np.concatenate(held))
            if kind not in self._writers:
                path = self._directory / f"{kind}.{self._part}.parquet"
                self._writers[kind] = pa.parquet.ParquetWriter(path, table.schema, compression="zstd")
            self._writers[kind].write_table(table)
        self._held, self._held_rows, self._since_s = {}, 0, time.monotonic()

    def end_part(self, names: Mapping[str, Any]) -> None:
        """Everything so far goes by these names."""
        self._flush()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        (self._directory / f"names.{self._part}.json").write_text(json.dumps(names))
        self._part += 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """Batches within which a number stands for one thing."""

    names: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]  # by kind, in the order in which they came


def read_parts(directory: Path) -> Iterator[Part]:
    """All complete parts, in their order."""
    for number in range(len(list(directory.glob("names.*.json")))):
        files = sorted(directory.glob(f"*.{number}.parquet"))
        yield Part(
            names=json.loads((directory / f"names.{number}.json").read_text()),
            rows={path.name.partition(".")[0]: _rows(path) for path in files},
        )


def table_of(rows: np.ndarray) -> Any:
    """A structured array as an Arrow table of unsigned integers and fixed-size binaries."""
    # From buffers: pyarrow's ways in from numpy load pandas, which is no part of an agent.
    columns = []
    for name in rows.dtype.names or ():
        values = rows[name]
        bits = values.dtype.itemsize * 8
        kind = pa.binary(bits // 8) if values.dtype.kind == "V" else pa.type_for_alias(f"uint{bits}")
        columns.append(pa.Array.from_buffers(kind, rows.size, [None, pa.py_buffer(values.tobytes())]))
    return pa.Table.from_arrays(columns, names=list(rows.dtype.names or ()))


def _rows(path: Path) -> np.ndarray:
    # ParquetFile, not read_table: that one would also infer columns from the directory's name.
    with pa.parquet.ParquetFile(path) as stored:
        return rows_of(stored.read())


def rows_of(table: Any) -> np.ndarray:
    """The structured array that `table_of` was given."""
    table = table.combine_chunks()
    dtypes = [_dtype(member.type) for member in table.schema]
    rows = np.empty(table.num_rows, list(zip(table.column_names, dtypes, strict=True)))
    for name, dtype in zip(table.column_names, dtypes, strict=True):
        chunks = table.column(name).chunks
        values = [
            np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
            for chunk in chunks
        ]
        rows[name] = np.concatenate(values) if values else np.empty(0, dtype)
    return rows


def _dtype(kind: Any) -> np.dtype[Any]:
    if pa.types.is_fixed_size_binary(kind):
        return np.dtype(f"V{kind.byte_width}")
    dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return dtype
