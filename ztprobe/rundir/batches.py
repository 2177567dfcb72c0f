"""Events of a run that is going on, kept on disk in the form in which the kernel wrote them.

``events/.batches/KIND.N.arrows`` (an Arrow stream) grows by a batch whenever enough records have come
or some seconds have passed, so that nothing is held longer than that; its columns are the members of the
kind's struct. A stream can be read as far as it was written, whatever ended its writer. What numbers
in it stand for is written beside it when a part is complete (``names.N.json``): a second part begins
only where a number comes to stand for something else. When the run has ended the parts become the
tables that are analysed, and go.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ("BATCHES_DIR", "BatchWriter", "Part", "read_parts", "rows_of", "table_of")

BATCHES_DIR = Path("events") / ".batches"

_GROUP_ROWS = 1 << 14
_GROUP_S = 3.0  # what a process that is killed can take along
_SUFFIX = ".arrows"


class BatchWriter:
    """Writes batches of structured arrays; `end_part` completes what was written so far.

    :param directory: is made.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._part = 0
        self._writers: dict[str, tuple[Any, Any]] = {}  # kind -> stream, file
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
                file = pa.OSFile(str(self._directory / f"{kind}.{self._part}{_SUFFIX}"), "wb")
                options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
                self._writers[kind] = pa.ipc.new_stream(file, table.schema, options=options), file
            self._writers[kind][0].write_table(table)
        self._held, self._held_rows, self._since_s = {}, 0, time.monotonic()

    def end_part(self, names: Mapping[str, Any]) -> None:
        """Everything so far goes by these names."""
        self._flush()
        for stream, file in self._writers.values():
            stream.close()
            file.close()
        self._writers.clear()
        (self._directory / f"names.{self._part}.json").write_text(json.dumps(names))
        self._part += 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """Batches within which a number stands for one thing."""

    names: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]  # by kind, in the order in which they came


def read_parts(directory: Path, names: Mapping[str, Any] | None = None) -> Iterator[Part]:
    """All complete parts, in their order.

    :param names: what numbers stand for in a last part whose writer was killed before it could say so
        (None: such a part is left out).
    """
    complete = len(list(directory.glob("names.*.json")))
    for number in range(complete if names is None else complete + 1):
        files = sorted(directory.glob(f"*.{number}{_SUFFIX}"))
        said = names
        if number < complete:
            said = json.loads((directory / f"names.{number}.json").read_text())
        if said is not None and (files or number < complete):
            read = {path.name.partition(".")[0]: _rows(path) for path in files}
            yield Part(names=said, rows={kind: rows for kind, rows in read.items() if rows is not None})


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


def _rows(path: Path) -> np.ndarray | None:
    groups = []
    with pa.OSFile(str(path), "rb") as file:
        try:
            stream = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:  # not even its schema was written
            return None
        # An error: it was cut off within this batch.
        with contextlib.suppress(StopIteration, pa.ArrowException, OSError):
            while True:
                groups.append(stream.read_next_batch())
    return rows_of(pa.Table.from_batches(groups, stream.schema))


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
